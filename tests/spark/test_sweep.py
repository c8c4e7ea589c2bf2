"""`sweep` says what pruning again does: quotas, distances, overlap; and which eps deduplication leaves so many."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import VIEW, config_of, make_embeddings, make_keys, write_table

from spark_dbp import RunConfig, find_eps, find_temperature, open_run, prune_again, run, sweep
from spark_dbp.cli import main
from spark_dbp.errors import InputError
from spark_dbp.explore import choose_eps
from spark_dbp.kernels.pairwise import find_threshold

pytestmark = pytest.mark.slow

N, DIM = 900, 16
KEYS = make_keys(N)
# Of the summary of a run, what a row says too.
COUNTS = ("saturated", "at_floor", "weight_ratio")


@pytest.fixture(scope="module")
def done(spark, tmp_path_factory):
    """A run with semantic duplicates, a hundred of them identical."""
    folder = tmp_path_factory.mktemp("swept")
    raw = make_embeddings(N, DIM, 5)
    rng = np.random.default_rng(4)
    raw[600:] = raw[rng.integers(0, 600, 300)] * (1 + 0.05 * rng.standard_normal((300, DIM)))
    raw[800:] = raw[:100]
    source = write_table(folder / "in", KEYS, raw.astype(np.float32), n_files=2)
    config = config_of(
        source,
        folder / "run",
        dedup={"semantic": {"eps": [0.001, 0.03], "n_clusters": 4, "n_iter": 2}},
        prune={"keep_ratio": 0.3, "temperature": 0.05},
    )
    return run(RunConfig.from_dict(config), spark)


def kept_keys(of, spark):
    return {row[0] for row in of.keep_list(spark).select("key").collect()}


# The settings of a base run, then of one that is pruned again from it.
AGAIN = [
    ({}, {"keep_ratio": 0.07, "temperature": 0.01}),
    ({}, {"keep_ratio": 0.6, "temperature": 3.0, "complexity": "d_inter"}),
    ({"n_keep": 200, "min_per_cluster": 7, "which_to_keep": "easy"}, {"temperature": 0.002}),
    (
        {"cluster_balance": 0.8, "which_to_keep": "stratified"},
        {"keep_ratio": 0.25, "complexity": "cluster_size"},
    ),
    ({"which_to_keep": "random", "min_per_cluster": 0}, {"keep_ratio": 0.5, "temperature": 0.02}),
]


@pytest.mark.parametrize(("of_base", "of_again"), AGAIN)
def test_a_row_is_what_pruning_again_does(spark, done, tmp_path, of_base, of_again):
    def prune(source, name, values):
        return prune_again(source, str(tmp_path / name), [f"prune.{k}={v}" for k, v in values.items()], spark)

    base = prune(done, "base", of_base) if of_base else done
    again = prune(base, "again", of_again)
    row = sweep(base, **of_again)[0]
    summary = again.document["summary"]
    assert row.n_keep == again.document["accounting"]["kept"]
    assert [getattr(row, name) for name in COUNTS] == [summary[name] for name in COUNTS]
    assert [row.smallest_quota, row.largest_quota] == summary["quotas"]
    assert abs(row.mean_distance_kept - summary["mean_distance_kept"]) <= row.mean_distance_kept_error
    shares = again.quotas()["quota"].to_numpy() / row.n_keep
    shares = shares[shares > 0]
    assert row.effective_clusters == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    now = sweep(base).now
    assert now.current
    assert now.n_keep == base.document["accounting"]["kept"]
    if base.config().prune.which_to_keep in ("hard", "easy"):
        before = kept_keys(base, spark)
        assert row.overlap == len(before & kept_keys(again, spark)) / len(before)
        assert now.overlap == 1
    else:
        assert row.overlap is None


def test_what_cannot_be_is_a_row(spark, done, tmp_path):
    base = prune_again(done, str(tmp_path / "base"), ["prune.min_per_cluster=10"], spark)
    few, none, enough = sweep(base, [0.05, 0.0001, 0.5])
    assert [row.feasible for row in (few, none, enough)] == [False, False, True]
    assert few.n_keep is None
    assert "floors need at least" in few.hint
    assert "cannot be kept" in none.hint
    with pytest.raises(InputError) as refused:
        prune_again(base, str(tmp_path / "again"), ["prune.keep_ratio=0.05"], spark)
    assert refused.value.what in few.hint


def test_the_temperature_of_so_many_saturated(done):
    for most in (0, 1, 3):
        row = find_temperature(done, most, keep_ratio=0.4)[0]
        counted = sweep(done, 0.4, row.temperature)[0]
        if not row.feasible:
            fewest = min(r.saturated for r in sweep(done, 0.4, np.geomspace(1e-4, 10, 60)))
            assert row.saturated == counted.saturated
            assert most < row.saturated <= fewest + 1
            continue
        assert row.saturated == counted.saturated <= most
        if "any lower" not in row.hint:  # a little lower there are more
            assert sweep(done, 0.4, row.temperature * 0.985)[0].saturated > most


def test_eps_leaves_exactly_so_many(spark, done, monkeypatch):
    pairs = done.table("semantic_pairs", spark).select("similarity").collect()
    similarity = np.sort([row[0] for row in pairs])[::-1]
    identical = int((similarity == 1).sum())
    assert identical >= 100
    for held, ranges in ((2**20, 2**16), (8, 4)):  # a few passes, and many
        monkeypatch.setattr(choose_eps, "_MOST_HELD", held)
        monkeypatch.setattr(choose_eps, "_RANGES", ranges)
        for removed in {identical, identical + 1, identical + 40, len(similarity) - 1, len(similarity)}:
            found = find_eps(done, N - removed)
            assert int((similarity > find_threshold(found["eps"])).sum()) == found["removed"]
            if len(np.unique(similarity[:removed])) == removed - identical + 1:
                assert (found["removed"], found["left"], found["hint"]) == (removed, N - removed, None)
    with pytest.raises(InputError, match=f"{identical} samples have the vector of an earlier one"):
        find_eps(done, N - identical + 1)
    with pytest.raises(InputError, match=r"the largest eps that was counted, 0\.03"):
        find_eps(done, N - len(similarity) - 1)
    with pytest.raises(InputError, match="got 900 samples"):
        find_eps(done, N + 1)


def test_eps_that_was_found_is_what_a_run_does(spark, done, tmp_path):
    found = find_eps(done, 750)
    config = done.config().with_settings(
        [f"dedup.semantic.eps={found['eps']!r}", f"output.path={tmp_path}/run"]
    )
    again = run(config, spark)
    assert again.document["accounting"]["dropped"]["semantic duplicates"] == N - 750
    connected = run(
        config.with_settings(["dedup.semantic.groups=connected", f"output.path={tmp_path}/c"]), spark
    )
    with pytest.raises(InputError, match="groups: connected"):
        find_eps(connected, 750)


def test_the_command(done, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    table, figure = tmp_path / "rows.csv", tmp_path / "a figure.svg"
    asked = [
        "--keep-ratio",
        "0.1,0.3",
        "--temperature",
        "0.05",
        "--temperature",
        "5",
        "--complexity",
        "uniform,d_intra*d_inter",
    ]
    assert main(["sweep", done.path, *asked, "--json", "--csv", str(table), "--plot", str(figure)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["complexity"], r["keep_ratio"], r["temperature"]) for r in rows] == [
        (c, k, t) for c in ("uniform", "d_intra*d_inter") for k in (0.1, 0.3) for t in (0.05, 5.0)
    ]
    assert [row["current"] for row in rows] == [False] * 6 + [True, False]
    assert rows == sweep(done, [0.1, 0.3], [0.05, 5], ["uniform", "d_intra*d_inter"]).to_dicts()
    with table.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["saturated"] for row in written] == [str(row["saturated"]) for row in rows]
    assert figure.read_text().startswith("<?xml")
    assert main(["sweep", done.path, *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[2:10]] == [
        [f"{r['keep_ratio']:g}", f"{r['temperature']:g}", r["complexity"]] for r in rows
    ]
    assert "this run" in lines[8]
    assert "complexity uniform uses no temperature" in "\n".join(lines)
    assert "nearly equal weights" in "\n".join(lines)


def test_the_command_for_eps(done, capsys):
    assert main(["sweep", done.path, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["eps"], row["applied"], row["left"] + row["removed"]) for row in rows] == [
        (0.001, True, N),
        (0.03, False, N),
    ]
    assert main(["sweep", done.path, "--dedup-to", "750", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [find_eps(done, 750)]
    assert main(["sweep", done.path, "--dedup-to", "750"]) == 0
    assert "leaves 750 of 900 samples (150 removed, 16.7%" in capsys.readouterr().out
    assert main(["sweep", done.path, "--saturated-at-most", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["saturated"] <= 4


def test_tables_that_are_gone_or_damaged_are_named(spark, done, tmp_path, capsys):
    again = prune_again(done, str(tmp_path / "again"), [], spark)
    file = tmp_path / "again" / again.list_files("quotas")[0].partition("again/")[2]
    file.write_bytes(b"PAR1 this is none PAR1")
    assert main(["sweep", again.path, "--keep-ratio", "0.2"]) == 3
    message = capsys.readouterr().err
    assert "the table quotas of the run cannot be read" in message
    assert "spark-dbp verify" in message
    file.unlink()
    assert main(["sweep", again.path, "--keep-ratio", "0.2"]) == 3
    assert len(sweep(open_run(done.path))) == 1


def test_a_store_that_only_spark_opens(spark, viewed, done, capsys):
    shutil.copytree(done.path, viewed / "swept run")
    asked = ["--keep-ratio", "0.1,0.4", "--json"]
    assert main(["sweep", done.path, *asked]) == 0
    by_python = capsys.readouterr().out
    assert main(["sweep", f"{VIEW}/swept run", *asked]) == 0
    assert capsys.readouterr().out == by_python
    assert main(["sweep", f"{VIEW}/swept run", "--dedup-to", "750", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [find_eps(done, 750)]


def test_figures(done):
    pytest.importorskip("matplotlib")
    for figure in (
        done.plot_clusters(),
        done.plot_quotas(),
        done.plot_distances(int(done.quotas()["cluster_id"].iloc[0])),
        done.plot_sweep(),
        done.plot_sweep(temperature=[0.01, 0.1]),
    ):
        figure.canvas.draw()
        labelled = [axes for axes in figure.axes if axes.get_xlabel() or axes.get_ylabel()]
        assert labelled
        assert all(axes.get_ylabel() or axes.get_title() for axes in labelled)
    with pytest.raises(InputError, match="no cluster 12345"):
        done.plot_distances(12345)
    shown = done.plot_distances(0).axes[0]
    heights = sum(bar.get_height() for bar in shown.patches)
    assert heights == done.cluster_stats()["n_items"][0]
