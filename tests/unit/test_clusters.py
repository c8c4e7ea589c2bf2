"""The table of the narrowest and widest clusters, of a run that lies in tests/data."""

from __future__ import annotations

import pytest
from conftest import ROOT

from spark_dbp import open_run
from spark_dbp.explore.clusters import describe_extreme_clusters, format_clusters


@pytest.fixture
def run():
    return open_run(ROOT / "tests/data/run-format-1")


def test_either_end_by_complexity(run):
    everything = describe_extreme_clusters(run, n=100)
    assert len(everything) == len(run.quotas()) == 3
    assert everything["complexity"].is_monotonic_increasing
    assert everything["quota"].sum() == 16
    assert everything["kept"].tolist() == (everything["quota"] / everything["n_items"]).tolist()
    ends = describe_extreme_clusters(run, n=1)
    assert ends["cluster_id"].tolist() == [everything["cluster_id"].iloc[i] for i in (0, -1)]
    lines = format_clusters(ends).splitlines()
    assert lines[0].split() == ["cluster_id", "n_items", "d_intra", "d_inter", "complexity", "quota", "kept"]
    assert len(lines) == 3
    assert lines[1].endswith("%")


def test_what_clusters_mostly_hold(run):
    class Labels(dict):
        def __missing__(self, key: str) -> str:
            return "even" if len(key) % 2 == 0 else "odd"

    mostly = describe_extreme_clusters(run, labels=Labels())["mostly"]
    assert mostly.str.fullmatch(r"(even|odd) \(\d+%\)").all()
