"""Reading embeddings that other programs wrote, and making a table of them: against numpy and pyarrow."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import in_turn, report, scratch
from benchmarks.scripts import load_pairs
from benchmarks.whole_run import Side, call_module, make_script, measure_sides
from spark_dbp.io.formats.dataset import open_dataset
from spark_dbp.io.formats.parts import read_range, share_rows

# Rows of a file: 10,000 images in each of ten shards.
_FILE_ROWS = 100_000


def measure(form: str, n_rows: int, dim: int, runs: int) -> None:
    """Print how long one process reads all rows, and how long the whole command takes to make a table.

    Parameters
    ----------
    form : {"clip_retrieval", "datacomp"}
    n_rows : int
    dim : int
        Of the embeddings, which are float16.
    runs : int
    """
    with scratch() as folder:
        source = folder / "in"
        _WRITERS[form](source, n_rows, dim)
        sides_read = {
            "ours": lambda: _read(form, str(source)),
            "numpy": lambda: sum(len(rows) for rows, _ in load_pairs(source)),
        }
        took = in_turn(runs, 1, **sides_read)
        rows = [(f"{side}, one process", f"{seconds:.2f} s") for side, seconds in took.items()]
        rows.append(("time of ours to that of numpy and pyarrow", f"{took['ours'] / took['numpy']:.2f}"))
        sides = {
            "spark-dbp import": Side(_import(form, folder)),
            "a script of numpy and pyarrow": Side(make_script(folder, "make_table", source=str(source))),
        }
        measure_sides(sides, runs)
        rows += [(name, str(side)) for name, side in sides.items()]
    report(f"{form}: {n_rows:,} x {dim} float16 (median of {runs}, in turn)", rows)


def _make_batches(n_rows: int, dim: int) -> Iterator[tuple[int, npt.NDArray[np.float16], pa.Table]]:
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, n_rows, _FILE_ROWS)):
        ids = range(start, min(n_rows, start + _FILE_ROWS))
        rows = rng.standard_normal((len(ids), dim), dtype=np.float32).astype(np.float16)
        texts = [f"a photo of the thing number {i} in the place {i % 977}" for i in ids]
        keys = [f"{i:032x}" for i in ids]
        scores = pa.array(rng.random(len(ids), dtype=np.float32))
        yield number, rows, pa.table({"uid": keys, "text": texts, "score": scores})


def _write_clip_retrieval(path: Path, n_rows: int, dim: int) -> None:
    for folder in ("img_emb", "metadata"):
        (path / folder).mkdir(parents=True)
    for number, rows, metadata in _make_batches(n_rows, dim):
        np.save(path / "img_emb" / f"img_emb_{number:02d}.npy", rows)
        pq.write_table(metadata, path / "metadata" / f"metadata_{number:02d}.parquet")


def _write_datacomp(path: Path, n_rows: int, dim: int) -> None:
    path.mkdir()
    for number, rows, metadata in _make_batches(n_rows, dim):
        np.savez(path / f"{number:02d}.npz", l14_img=rows)
        pq.write_table(metadata, path / f"{number:02d}.parquet")


_WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "clip_retrieval": _write_clip_retrieval,
    "datacomp": _write_datacomp,
}


def _read(form: str, path: str) -> int:
    """All rows, as a task reads them."""
    parts = open_dataset(form, [path], {}).parts
    names = list(parts[0].columns)
    places = (place for task in share_rows(parts) for place in task)
    return sum(batch.num_rows for place in places for batch in read_range(parts[place.number], place, names))


def _import(form: str, folder: Path) -> Callable[[], None]:
    key = ["--key", "uid"]

    def run() -> None:
        shutil.rmtree(folder / "table", ignore_errors=True)
        call_module("spark_dbp", "import", form, str(folder / "in"), "--out", str(folder / "table"), *key)

    return run
