"""Runs that other versions of this program made: opened and used, or refused with the version to use.

tests/data/run-format-1 is a run of 60 rows that the last version before formats had numbers made, with exact and
semantic deduplication.
"""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import ROOT, rows_of

from spark_dbp import KeepTrie, open_run, prune_again, verify
from spark_dbp.cli import main
from spark_dbp.errors import InputError
from spark_dbp.lake.marks import FORMAT_VERSION


@pytest.fixture
def earlier(tmp_path):
    shutil.copytree(ROOT / "tests/data/run-format-1", tmp_path / "earlier")
    return open_run(tmp_path / "earlier")


@pytest.mark.slow
def test_a_run_of_format_1_is_opened_and_verified(spark, earlier):
    assert "format_version" not in earlier.document
    assert "kept        16 of 56" in str(earlier.summary())
    assert len(KeepTrie.open(earlier.path)) == 16
    assert [row["applied"] for row in earlier.semantic_sweep()] == [True]
    assert len(verify(earlier, spark)) == 9


@pytest.mark.slow
def test_a_run_of_format_1_is_pruned_again(spark, earlier, tmp_path):
    same = prune_again(earlier, str(tmp_path / "same"), [], spark)
    assert same.document["digests"]["keep_list"] == earlier.document["digests"]["keep_list"]
    assert same.document["format_version"] == FORMAT_VERSION
    more = prune_again(earlier, str(tmp_path / "more"), ["prune.keep_ratio=0.5", "trie.shards=2"], spark)
    assert more.document["rows"]["keep_list"] == 28
    assert {row[0] for row in rows_of(earlier.keep_list(spark))} < {
        row[0] for row in rows_of(more.keep_list(spark))
    }
    assert len(verify(more, spark)) == 9


@pytest.mark.parametrize("command", ["select", "verify", "sweep"])
def test_a_run_of_a_later_format_is_refused_naming_the_version(earlier, tmp_path, capsys, command):
    path = tmp_path / "earlier/run.json"
    document = {**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1, "spark_dbp": "9.8.7"}
    path.write_text(json.dumps(document))
    assert main([command, str(tmp_path / "earlier"), *(["--out", "x"] if command == "select" else [])]) == 3
    message = capsys.readouterr().err
    assert f"version 9.8.7 of spark-dbp (format {FORMAT_VERSION + 1})" in message
    assert "open it with spark-dbp 9.8.7 or a later one" in message


@pytest.mark.parametrize("version", [0, -1, "2", None, [], 1.5, 1.0, True])
def test_a_format_that_is_no_number_of_ours_is_refused(earlier, tmp_path, version):
    path = tmp_path / "earlier/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    with pytest.raises(InputError, match=r"is not a run\.json of this program"):
        open_run(tmp_path / "earlier")
