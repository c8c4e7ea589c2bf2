"""A run with a score filter: both engines, accounting, verify, resuming, pruning again."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import oracle
import pyarrow as pa
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table
from test_score_filter import expect
from test_verify import forge, read

from spark_dbp import RunConfig, open_run, prune_again, run, verify
from spark_dbp.errors import DamagedRunError, InfeasibleError

N, DIM, K = 400, 8, 6
KEYS = make_keys(N)
EMBEDDINGS = make_embeddings(N, DIM, 5)
RNG = np.random.default_rng(7)
SCORES = [
    None if i % 23 == 0 else float("nan") if i % 29 == 0 else s
    for i, s in enumerate(RNG.integers(0, 9, N) / 8)
]
GROUPS = [None if i % 11 == 0 else f"g{i % 4}" if i > 3 else f"alone {i}" for i in range(N)]
PAIRS = [i // 2 if i < 20 else i for i in range(N)]
FRACTION = {"column": "score", "keep_fraction": 0.4, "within": "nested.group"}
FILTERS = {
    "fraction": FRACTION,
    "at least": {"column": {"sql": "score + 0"}, "at_least": 0.5},
    "condition": {"expr": "score >= 0.5 AND nested.group <> 'g1' AND NOT isnan(score)"},
}


def list_passing(name: str) -> list[int]:
    """Numbers of the rows that are left: no second of a pair, and the filter's."""
    rows = [i for i in range(N) if not (i < 20 and KEYS[i] != min(KEYS[i - i % 2], KEYS[i - i % 2 + 1]))]
    if name == "fraction":
        kept = set(expect([(KEYS[i], SCORES[i], GROUPS[i]) for i in rows], "0.4"))
        return [i for i in rows if KEYS[i] in kept]
    rows = [i for i in rows if SCORES[i] is not None and SCORES[i] >= 0.5]
    return rows if name == "at least" else [i for i in rows if GROUPS[i] not in (None, "g1")]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    nested = pa.array([{"group": group, "other": 1} for group in GROUPS])
    return write_table(
        tmp_path_factory.mktemp("data") / "in", KEYS, EMBEDDINGS, n_files=3, score=SCORES, nested=nested, pair=PAIRS
    )  # fmt: skip


def make_config(source, out, name: str, engine: str = "arrow", **sections) -> RunConfig:
    sections = {
        "dedup": {"exact": {"columns": ["pair"]}},
        "cluster": {"n_clusters": K, "n_iter": 4},
        **sections,
    }
    return RunConfig.from_dict(
        {**config_of(source, out, score_filter=FILTERS[name], **sections), "engine": engine}
    )


@pytest.fixture(scope="module")
def good(spark, source, tmp_path_factory):
    return run(make_config(source, tmp_path_factory.mktemp("good") / "run", "fraction"), spark)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_both_engines_give_the_answer_of_the_oracle(spark, source, tmp_path, name):
    left = list_passing(name)
    answer = oracle.run([KEYS[i] for i in left], EMBEDDINGS[left], n_clusters=K, n_iter=4, keep_ratio=0.3)
    done = [run(make_config(source, tmp_path / engine, name, engine), spark) for engine in ("arrow", "sql")]
    assert done[0].document["digests"] == done[1].document["digests"]
    account = done[0].document["accounting"]
    reasons = {"input.filter": 0, "exact duplicates": 10, "pruned": len(left) - account["kept"]}
    rest = {reason: n for reason, n in account["dropped"].items() if reason not in reasons}
    assert account["dropped"] == {**reasons, **rest}
    assert set(rest) == (
        {"score_filter null", "score_filter"}
        if name == "condition"
        else {"score null", "score NaN", "score_filter"}
    )
    assert sum(rest.values()) == N - 10 - len(left)
    for one in done:
        assert rows_of(one.table("filtered", spark).select("key")) == sorted((KEYS[i],) for i in left)
        assert rows_of(one.keep_list(spark)) == answer.keep_list
        assert "filtered samples as the score filter lets them through" in verify(one, spark)
        assert open_run(one.path).config() == one.config()
    assert f"{rest['score_filter']:,} score_filter" in str(done[0].summary())


@pytest.mark.slow
def test_nothing_is_computed_again_but_what_the_filter_changes(spark, source, good, tmp_path):
    shutil.copytree(good.path, tmp_path / "run")
    same = run(make_config(source, tmp_path / "run", "fraction"), spark)
    assert same.document["reused_stages"] == list(good.document["stages"])
    other = make_config(source, tmp_path / "run", "fraction").with_settings(
        ["score_filter.keep_fraction=0.5"]
    )
    changed = run(other, spark)
    assert changed.document["reused_stages"] == ["ingest", "exact_dedup", "survivors"]
    assert changed.document["rows"]["filtered"] > good.document["rows"]["filtered"]
    again = prune_again(changed, str(tmp_path / "again"), ["prune.keep_ratio=0.5"], spark)
    verify(again, spark)
    assert (
        again.document["accounting"]["dropped"]["score_filter"]
        == changed.document["accounting"]["dropped"]["score_filter"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "dedup"),
    [
        ({"cluster_id": "cid"}, {"exact": {"columns": ["score"]}}),
        ({"cluster_id": "cid", "distance_to_centroid": "dist"}, {}),
    ],
)
def test_data_that_is_clustered_already(spark, tmp_path, given, dedup):
    """Clusters and distances travel through the filter."""
    more = {
        "cid": [i % K for i in range(N)],
        "dist": np.arange(N) / N,
        "score": [i * 7 % N for i in range(N)],
    }
    source = write_table(tmp_path / "in", KEYS, EMBEDDINGS, n_files=2, **more)
    for number, settings in enumerate(
        ({"column": "score", "keep_fraction": 0.5}, {"column": "score", "at_least": 200})
    ):
        config = config_of(source, tmp_path / str(number), input=given, score_filter=settings, dedup=dedup)
        del config["cluster"]
        done = run(RunConfig.from_dict(config), spark)
        verify(done, spark)
        assert [tuple(row)[:2] for row in rows_of(done.assignments(spark))] == sorted(
            (key, cid)
            for key, cid, score in zip(KEYS, more["cid"], more["score"], strict=True)
            if score >= 200
        )


def test_groups_of_which_nothing_is_kept_are_told_of(spark, source, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "spark_dbp"):
        run(make_config(source, tmp_path / "run", "fraction", dedup={}), spark)
    assert "of 3 of 8 groups no row is kept, for keep_fraction 0.4 of their rows is less" in caplog.text


def test_a_filter_that_leaves_too_few_is_refused_with_the_numbers(spark, source, tmp_path):
    few = make_config(source, tmp_path / "run", "at least").with_settings(["score_filter.at_least=0.99"])
    with pytest.raises(
        InfeasibleError, match=r"score_filter left \d+ of 390 rows \(.*score null.*\): cluster"
    ) as caught:
        run(few.with_settings(["cluster.n_clusters=200"]), spark)
    assert "let the filter keep more rows" in str(caught.value)
    with pytest.raises(InfeasibleError, match=r"score_filter left 0 of 390 rows \(18 score null, "):
        run(few.with_settings(["score_filter.at_least=2"]), spark)


# Damage.


def swap(table: pa.Table, out: str, into: str) -> pa.Table:
    keys = [into if key == out else key for key in table.column("key").to_pylist()]
    return table.set_column(0, table.schema.field("key"), pa.array(keys))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stranger", "1 keys are no samples, or duplicates, such as 'stranger'"),
        pytest.param("lower score", "not the highest scores of group 'g", marks=pytest.mark.slow),
        pytest.param("no score", "1 rows do not pass the filter", marks=pytest.mark.slow),
        pytest.param("one less", "where the account of rows needs", marks=pytest.mark.slow),
    ],
)
def test_verify_finds_a_table_that_was_changed(spark, good, tmp_path, name, words):
    shutil.copytree(good.path, tmp_path / "run")
    copy = open_run(tmp_path / "run")
    table = read(copy, "filtered")
    kept = set(table.column("key").to_pylist())
    one = next(i for i in range(20, N) if KEYS[i] in kept and GROUPS[i] == "g1" and SCORES[i] == 1)
    lower = next(i for i in range(20, N) if KEYS[i] not in kept and GROUPS[i] == "g1" and SCORES[i] == 0)
    into = {"stranger": "stranger", "lower score": KEYS[lower], "no score": KEYS[SCORES.index(None, 20)]}
    changed = table.slice(1) if name == "one less" else swap(table, KEYS[one], into[name])
    with pytest.raises(DamagedRunError, match=f"table filtered.*{words}"):
        verify(forge(spark, copy, "filtered", changed), spark)
