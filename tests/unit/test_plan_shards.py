"""How kept samples are cut into new shards, against a loop over single samples."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from spark_dbp.errors import ConfigError
from spark_dbp.exchange.plan_shards import Piece, ShardPlan, measure_tar, parse_size, plan_shards


@dataclass
class Index:
    """As much of an index as a plan looks at: of each shard, (name, bytes) of its kept samples."""

    rows: list[list[tuple[str, int]]]

    @property
    def kept(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.rows], np.int64)

    def read_columns(self, shard: int, columns: list[str]) -> pa.Table:
        names, sizes = zip(*self.rows[shard], strict=True)
        start = np.cumsum([0, *sizes[:-1]]) + 512
        return pa.table({"sample": list(names), "start": start, "stop": start + np.array(sizes)}).select(
            columns
        )


def cut_one_by_one(rows: list[list[tuple[str, int]]], samples: int | None, size: int | None) -> list[list]:
    """Lists of (shard, row), one for each new shard."""
    new: list[list[tuple[int, int]]] = []
    held, last = 0, None
    for shard, of_shard in enumerate(rows):
        for row, (name, n_bytes) in enumerate(of_shard):
            full = new and (len(new[-1]) == samples if samples else measure_tar(held + n_bytes) > size)
            if not new or full or name == last:
                new.append([])
                held = 0
            new[-1].append((shard, row))
            held, last = held + n_bytes, name
    return new


def expand(plan: ShardPlan, index: Index) -> list[list]:
    pieces = [plan.list_pieces(number, index.kept) for number in range(len(plan))]
    return [[(p.shard, row) for p in some for row in range(p.start, p.stop)] for some in pieces]


@pytest.mark.parametrize("seed", range(60))
def test_the_same_as_one_by_one(seed):
    rng = random.Random(seed)
    names = [f"{n}" for n in range(rng.choice([2, 5, 1000]))]
    rows = [
        [(rng.choice(names), 512 * rng.choice([2, 3, 10, 60])) for _ in range(rng.choice([0, 0, 1, 7, 40]))]
        for _ in range(rng.choice([1, 3, 12]))
    ]
    index = Index(rows)
    options = rng.choice(
        [{"samples": rng.choice([1, 2, 7, 1000])}, {"size": rng.choice([10240, 25000, 10**6])}]
    )
    plan = plan_shards(index, **options)
    expected = cut_one_by_one(rows, options.get("samples"), options.get("size"))
    assert expand(plan, index) == expected
    assert plan.samples == [len(some) for some in expected]
    assert plan.bytes == [sum(rows[shard][row][1] for shard, row in some) for some in expected]


def test_a_sample_larger_than_a_shard_has_one_of_its_own():
    plan = plan_shards(Index([[("a", 1024), ("b", 10**6), ("c", 1024)]]), size=20_480)
    assert plan.samples == [1, 1, 1]
    assert plan.size(1) == measure_tar(10**6) > 10**6


def test_names_are_as_wide_as_they_must_be():
    assert ShardPlan([(0, 0)] * 3).name(2) == "00002"
    assert ShardPlan([(0, 0)] * 100_000).name(7) == "00007"
    assert ShardPlan([(0, 0)] * 100_001).name(7) == "000007"


def test_pieces_pass_over_shards_that_keep_nothing():
    plan = ShardPlan([(0, 2)], [4], [0])
    assert plan.list_pieces(0, np.array([3, 0, 5])) == [Piece(0, 2, 3), Piece(2, 0, 3)]


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MB", 500_000_000), ("1.5 GiB", 1_610_612_736), ("20480", 20480), ("64k", 64_000), ("1T", 10**12)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "12 parsec", "1iB", "10239", "0.001MB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="is no size of a shard"):
        parse_size(text)
