"""Writing new shards of what was kept, against a plain copy of as many bytes on the same disk.

Both end when the bytes are on the disk (`fsync`). The shards are made: samples of a picture's size and a
label. The bytes that are read are in the page cache, for both.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import report, scratch


def measure(n_shards: int, n_samples: int, sample_bytes: int, shares: list[float], runs: int) -> None:
    """Print bytes a second of `reshard`, and of the copy.

    Parameters
    ----------
    n_shards : int
    n_samples : int
        Of each shard.
    sample_bytes : int
    shares : list of float
        Kept shares of the samples.
    runs : int
        Of each, in turn.
    """
    from spark_dbp import get_session
    from spark_dbp.exchange.reshard import reshard

    spark = get_session()
    spark.range(1).count()
    with scratch() as folder:
        _write_shards(folder / "shards", n_shards, n_samples, sample_bytes)
        rows = []
        for share in shares:
            run = _write_run(folder / f"run-{share}", n_shards * n_samples, share)
            took: dict[str, list[float]] = {"reshard": [], "copy": []}
            n_bytes = 0
            for _ in range(runs):
                out = folder / "new"
                os.sync()
                started = time.perf_counter()
                done = reshard(run, str(folder / "shards"), out, spark, samples=2000)
                took["reshard"].append(time.perf_counter() - started)
                n_bytes = done.info["bytes_out"]
                assert done.missing == 0
                os.sync()
                took["copy"].append(_copy(out, folder / "copy"))
                shutil.rmtree(out)
            ours, copy = (n_bytes / statistics.median(took[side]) / 1e6 for side in ("reshard", "copy"))
            rows.append(
                (
                    f"{share:.0%} kept, {n_bytes / 1e9:.2f} GB written",
                    f"reshard {statistics.median(took['reshard']):.1f} s, {ours:,.0f} MB/s; "
                    f"copy {copy:,.0f} MB/s; {ours / copy:.2f} times",
                )
            )
    report(
        f"reshard: {n_shards} shards of {n_samples:,} samples of {sample_bytes:,} bytes, median of {runs}",
        rows,
    )


def _copy(source: Path, target: Path) -> float:
    """Seconds to copy the tars of a folder, one after the other, to the disk."""
    target.mkdir()
    started = time.perf_counter()
    for path in sorted(source.glob("*.tar")):
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as stream:
            os.fsync(stream.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def _write_shards(folder: Path, n_shards: int, n_samples: int, sample_bytes: int) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0).bytes(sample_bytes)
    for shard in range(n_shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard * n_samples, (shard + 1) * n_samples):
                for suffix, content in (("jpg", noise), ("cls", str(number % 1000).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _write_run(folder: Path, n_samples: int, share: float) -> Any:
    """As much of a run as `reshard` looks at: its tries."""
    import marisa_trie

    from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION
    from spark_dbp.runs import open_run

    chosen = np.flatnonzero(np.random.default_rng(1).random(n_samples) < share).tolist()
    (folder / "keep_trie").mkdir(parents=True)
    marisa_trie.BinaryTrie([f"{number:09d}".encode() for number in chosen]).save(
        str(folder / "keep_trie" / "0.marisa")
    )
    manifest = {"format": FORMAT, "version": FORMAT_VERSION, "n_shards": 1, "n_keys": len(chosen)}
    manifest |= {"shards": [{"shard": 0, "file": "0.marisa"}], "key_type": "string", "expression": None}
    (folder / "keep_trie" / "manifest.json").write_text(json.dumps(manifest))
    document = {"tables": {"keep_trie": "keep_trie"}, "digests": {"keep_list": f"made-{share}"}}
    document |= {part: {} for part in ("summary", "stages", "config", "accounting")}
    (folder / "run.json").write_text(json.dumps(document | {"format_version": 2}))
    return open_run(folder)
