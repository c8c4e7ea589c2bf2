"""Building and looking up the keep trie, against marisa alone, a Python set and pygtrie."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import in_turn, report, scratch
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.session import start_local_session
from spark_dbp.loaders.keep_trie import KeepTrie
from spark_dbp.stages.keep_trie import build_keep_trie

_LOOK_UPS = 500_000
_PYGTRIE_KEYS = 200_000


def _keys(n_keys: int) -> list[str]:
    rng = np.random.default_rng(0)
    numbers = np.unique(rng.integers(0, 30 * n_keys, int(n_keys * 1.05)))[:n_keys]
    rng.shuffle(numbers)
    return [f"{number:012d}" for number in numbers.tolist()]


def measure(n_keys: int, runs: int) -> None:
    """Print seconds to build, keys a second looked up one by one, and bytes a key.

    Parameters
    ----------
    n_keys, runs : int
    """
    import marisa_trie
    import pygtrie

    keys = _keys(n_keys)
    with scratch() as folder:
        (folder / "in").mkdir()
        for number in range(8):
            pq.write_table(pa.table({"key": keys[number::8]}), folder / "in" / f"{number}.parquet")
        spark = start_local_session()
        table = CommittedTable(spark, str(folder / "in"), spark.read.parquet(str(folder / "in")))
        made = {}
        paths = iter(range(10**6))

        def ours() -> None:
            path = folder / f"trie-{next(paths)}"
            path.mkdir()
            build_keep_trie(table, str(path), n_keys)
            made["ours"] = path

        def marisa() -> None:
            trie = marisa_trie.Trie(keys)
            trie.save(str(folder / "one.marisa"))

        def read_too() -> None:
            read = pq.read_table(folder / "in").column("key").to_pylist()
            marisa_trie.Trie(read).save(str(folder / "one.marisa"))

        seconds = in_turn(runs, ours=ours, marisa=marisa, read_too=read_too)
        n_bytes = sum(file.stat().st_size for file in made["ours"].glob("*.marisa"))
        keep = KeepTrie.open(str(made["ours"]))
        whole = marisa_trie.Trie().mmap(str(folder / "one.marisa"))
        as_set = set(keys)
        some = pygtrie.CharTrie.fromkeys(keys[:_PYGTRIE_KEYS], True)
        asked = [*keys[: _LOOK_UPS // 2], *(f"{key}x" for key in keys[: _LOOK_UPS // 2])]
        rates = in_turn(
            runs,
            ours=_look_up(keep, asked),
            marisa=_look_up(whole, asked),
            set=_look_up(as_set, asked),
            pygtrie=_look_up(some, asked[: _LOOK_UPS // 10]),
        )
        spark.stop()
        per = {
            name: value / (_LOOK_UPS // 10 if name == "pygtrie" else _LOOK_UPS)
            for name, value in rates.items()
        }
        one_bytes = Path(folder / "one.marisa").stat().st_size
    report(
        f"trie of {n_keys:,} keys (median of {runs}, in turn)",
        [
            (
                "build: ours, from the keep list",
                f"{seconds['ours']:.1f} s, {n_bytes / n_keys:.2f} bytes a key",
            ),
            (
                "build: marisa, one thread, keys in memory",
                f"{seconds['marisa']:.1f} s, {one_bytes / n_keys:.2f} bytes a key",
            ),
            ("build: the same with the keys read from Parquet", f"{seconds['read_too']:.1f} s"),
            ("speed of ours to marisa, one thread", f"{seconds['marisa'] / seconds['ours']:.2f}"),
            *((f"look-up: {name}", f"{1e9 * value:.0f} ns") for name, value in per.items()),
            ("look-up of ours to raw marisa", f"{per['ours'] / per['marisa']:.2f}"),
        ],
    )


def _look_up(held: Container[str], asked: list[str]) -> Callable[[], int]:
    def run() -> int:
        return sum(key in held for key in asked)

    return run
