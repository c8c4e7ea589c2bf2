"""The table of the narrowest and widest clusters, of a run that lies in tests/data."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from spark_dbp import open_run
from spark_dbp.explore.clusters import find_extreme_clusters, format_clusters


@pytest.fixture
def run():
    return open_run(ROOT / "tests/data/run-format-1")


def test_either_end_by_complexity(run):
    everything = find_extreme_clusters(run, n=100)
    assert len(everything) == len(run.quotas()) == 3
    assert everything == sorted(everything, key=lambda row: row["complexity"])
    assert sum(row["quota"] for row in everything) == 16
    assert all(row["kept"] == row["quota"] / row["n_items"] for row in everything)
    ends = find_extreme_clusters(run, n=1)
    assert ends == [everything[0], everything[-1]]
    lines = format_clusters(ends).splitlines()
    assert lines[0].split() == ["cluster_id", "n_items", "d_intra", "d_inter", "complexity", "quota", "kept"]
    assert len(lines) == 3
    assert lines[1].endswith("%")


def test_what_clusters_mostly_hold(run):
    class Labels(dict):
        def __missing__(self, key: str) -> str:
            return "even" if len(key) % 2 == 0 else "odd"

    rows = find_extreme_clusters(run, labels=Labels())
    assert all(re.fullmatch(r"(even|odd) \(\d+%\)", row["mostly"]) for row in rows)


def test_a_narrow_terminal_shows_fewer_columns(run):
    lines = format_clusters(find_extreme_clusters(run), 50).splitlines()
    assert lines[0].split() == ["cluster_id", "n_items", "complexity", "quota", "kept"]
    assert lines[-1] == "left out, for the terminal is narrow: d_inter, d_intra"
    assert max(map(len, lines[:-1])) <= 50
