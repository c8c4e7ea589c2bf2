"""What the summary of a run says, from run.json alone."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from spark_dbp import Run

DOCUMENT = (ROOT / "tests/data/run-format-1/run.json").read_text()
NOTHING = {
    "weight_ratio": 9.0,
    "nearly_equal": False,
    "mostly_bound": False,
    "proposed_temperature": None,
    "proposed_weight_ratio": None,
}


def summarize(**summary: object) -> dict[str, str]:
    document = json.loads(DOCUMENT)
    document["summary"] |= {"clusters": 20, **summary}
    run = Run("run", document)
    items = dict(run.summary().items)
    assert all(text in str(run.summary()) for text in items.values())
    return items


@pytest.mark.parametrize("summary", [{}, NOTHING])
def test_runs_without_a_hint(summary):
    """Earlier runs say nothing of the kind."""
    assert "hint" not in summarize(**summary)


@pytest.mark.parametrize(
    ("summary", "hint"),
    [
        (
            {"nearly_equal": True, "weight_ratio": 1.115, "proposed_temperature": 0.005, "proposed_weight_ratio": 8.81},
            "the weights are nearly equal, the largest 1.1 times the smallest; "
            "try --set prune.temperature=0.005 (largest weight 8.8 times the smallest)",
        ),
        (
            {"nearly_equal": True, "weight_ratio": 1.0},
            "the weights are nearly equal, the largest 1 times the smallest",
        ),
        (
            {"mostly_bound": True, "saturated": 3, "at_floor": 16, "weight_ratio": None,
             "proposed_temperature": 4e-06, "proposed_weight_ratio": 31.6},
            "19 of 20 clusters are kept whole or at their floor; "
            "try --set prune.temperature=4e-06 (largest weight 32 times the smallest)",
        ),
        (
            {"mostly_bound": True, "saturated": 16, "at_floor": 0},
            "16 of 20 clusters are kept whole or at their floor; keep fewer samples, which leaves more to choose",
        ),
        (
            {"mostly_bound": True, "saturated": 1, "at_floor": 15},
            "16 of 20 clusters are kept whole or at their floor; keep more samples, or lower "
            "prune.min_per_cluster or prune.cluster_balance",
        ),
    ],
)  # fmt: skip
def test_hints(summary, hint):
    assert summarize(**{**NOTHING, **summary})["hint"] == hint


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("hard", "hard first"),
        ("easy", "easy first"),
        ("random", "at random (by a hash of the key)"),
        ("stratified", "stratified (evenly over the distances)"),
    ],
)
def test_how_the_kept_were_chosen(which, words):
    assert summarize(which_to_keep=which)["kept"].endswith(f"%), {words}")
