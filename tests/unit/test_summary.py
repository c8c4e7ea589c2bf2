"""What the summary of a run says, from run.json alone."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT

from spark_dbp import Run
from spark_dbp.hints import list_hints

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
            "nearly equal weights, the largest 1.1 times the smallest: the temperature is so high that the "
            "complexities hardly count; "
            "try --set prune.temperature=0.005 (largest weight 8.8 times the smallest)",
        ),
        (
            {"nearly_equal": True, "weight_ratio": 1.0},
            "nearly equal weights, the largest 1 times the smallest: the temperature is so high that the "
            "complexities hardly count",
        ),
        (
            {"mostly_bound": True, "saturated": 3, "at_floor": 16, "weight_ratio": None,
             "proposed_temperature": 4e-06, "proposed_weight_ratio": 31.6},
            "19 of 20 clusters are kept whole or at their floor: the temperature is low for so few samples, "
            "or the floor (prune.min_per_cluster, prune.cluster_balance) high; "
            "try --set prune.temperature=4e-06 (largest weight 32 times the smallest)",
        ),
        (
            {"mostly_bound": True, "saturated": 16, "at_floor": 0},
            "16 of 20 clusters are kept whole or at their floor, so the weights hardly count: keep fewer samples",
        ),
        (
            {"mostly_bound": True, "saturated": 1, "at_floor": 15},
            "16 of 20 clusters are kept whole or at their floor: the temperature is low for so few samples, "
            "or the floor (prune.min_per_cluster, prune.cluster_balance) high",
        ),
    ],
)  # fmt: skip
def test_hints(summary, hint):
    assert summarize(**{**NOTHING, **summary})["hint"] == hint


def list_of(
    accounting: dict, stages: dict | None = None, summary: dict | None = None, **config: object
) -> list[str]:
    document = json.loads(DOCUMENT)
    document["accounting"] = accounting
    document["summary"] |= {**NOTHING, "clusters": 20, "rows_to_prune": 100, **(summary or {})}
    document["config"] |= config
    document["stages"] |= stages or {}
    return list_hints(document)


def account(kept: int, **dropped: int) -> dict:
    dropped = {name.replace("_", " "): n for name, n in dropped.items()}
    return {
        "rows_in": 100 + sum(dropped.values()),
        "dropped": {**dropped, "pruned": 100 - kept},
        "kept": kept,
    }


SEMANTIC = {"semantic_dedup": {"info": {"eps": 0.2, "sweep": [{"eps": 0.2, "removed": 60, "share": 0.6}]}}}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (list_of(account(30)), None),
        (list_of(account(100)), "all samples are kept"),
        (list_of(account(97)), "97.0% of the samples are kept"),
        (list_of(account(30), summary={"saturated": 6}), "6 of 20 clusters are kept whole: raise prune.temperature (now 0.1)"),
        (
            list_of(account(30), summary={"saturated": 6}, prune={"complexity": "uniform"}),
            "6 of 20 clusters are kept whole: keep fewer samples",
        ),
        (list_of(account(30), summary={"saturated": 4}), None),
        (
            list_of(account(30, exact_duplicates=0, minhash_duplicates=4), dedup={"exact": {}, "minhash": {"column": "c"}}),
            None,
        ),
        (
            list_of(account(30, exact_duplicates=0), dedup={"exact": {"columns": ["c"]}}),
            "dedup.exact removed nothing",
        ),
        (
            list_of(account(30, semantic_duplicates=60), SEMANTIC, dedup={"semantic": {"eps": 0.2}}),
            "dedup.semantic.eps 0.2 removed 60% of the samples",
        ),
        (
            list_of({"rows_in": 100, "dropped": {"score_filter": 0, "pruned": 70}, "kept": 30}, score_filter={"expr": "x"}),
            "score_filter left nothing out",
        ),
        (
            list_of({"rows_in": 2000, "dropped": {"score_filter": 1900, "pruned": 70}, "kept": 30}, score_filter={"expr": "x"}),
            "score_filter left out 95% of the samples",
        ),
    ],
)  # fmt: skip
def test_what_is_odd_about_a_run(found, words):
    assert len(found) == (words is not None)
    assert words is None or found[0].startswith(words)


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
