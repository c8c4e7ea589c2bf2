"""Bare torch loops, for `encoders`: what one would write to embed images or texts on a single machine.

Each process takes every so-manieth item, computes on one thread, and writes ``vectors-N.npy`` and
``keys-N.txt``. Nothing is checked, bad items are not thought of, and what was done before a fault is lost.
"""

from __future__ import annotations

import json
import resource
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Embeds all items of a process, and returns their keys and vectors.
Loop = Callable[[], tuple[list[str], Any]]


def images(shards: list[str], model: str, number: int, n_processes: int, batch_size: int) -> Loop:
    """EfficientNet-Lite0 on the images of tar files, read in order."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
    from PIL import Image

    torch.set_num_threads(1)
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(model, map_location="cpu", weights_only=True))
    network.eval()

    def to_pixels(content: Any) -> Any:
        image = Image.open(content).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image, np.float32) / 255 - np.float32(0.498)) / np.float32(0.502)
        return torch.from_numpy(pixels.transpose(2, 0, 1))

    def encode(batch: list[Any]) -> Any:
        return network.extract_features(torch.stack(batch)).mean((2, 3)).numpy()

    def loop() -> tuple[list[str], Any]:
        keys, found, batch = [], [], []
        with torch.inference_mode():
            seen = 0
            for shard in shards:
                with tarfile.open(shard) as archive:
                    for member in archive:
                        if not member.name.endswith(".jpg"):
                            continue
                        seen += 1
                        if seen % n_processes != number:
                            continue
                        keys.append(member.name.removesuffix(".jpg"))
                        batch.append(to_pixels(archive.extractfile(member)))
                        if len(batch) == batch_size:
                            found.append(encode(batch))
                            batch = []
            if batch:
                found.append(encode(batch))
        return keys, np.concatenate(found)

    return loop


def texts(table: str, model: str, number: int, n_processes: int, batch_size: int) -> Loop:
    """A BERT with mean pooling on a column of texts, sorted by length."""
    import pyarrow.parquet as pq
    import torch
    import transformers  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    def loop() -> tuple[list[str], Any]:
        rows = pq.read_table(table, columns=["key", "text"])
        mine = list(zip(rows.column("key").to_pylist(), rows.column("text").to_pylist(), strict=True))[
            number::n_processes
        ]
        mine.sort(key=lambda row: len(row[1]))
        found = np.empty((len(mine), network.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(mine), batch_size):
                batch = [text for _, text in mine[start : start + batch_size]]
                tokens = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
                hidden = network(**tokens).last_hidden_state
                mask = tokens["attention_mask"].unsqueeze(-1)
                found[start : start + len(batch)] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return [key for key, _ in mine], found

    return loop


def main() -> None:
    """Load the model, embed, write, and say what it took."""
    kind, out, given = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    loop = images(**given) if kind == "images" else texts(**given)
    keys, vectors = loop()
    np.save(out / f"vectors-{given['number']}.npy", vectors)
    (out / f"keys-{given['number']}.txt").write_text("\n".join(keys))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB
    print(json.dumps({"seconds": time.process_time(), "gigabytes": peak}))


if __name__ == "__main__":
    main()
