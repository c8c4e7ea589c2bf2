"""Whole runs on stores that are no plain disks, by the real command.

A view of Hadoop stands for what only Spark opens: neither pyarrow nor a worker of Python does. A directory below
which libc refuses to rename, link, append, create exclusively and map stands for a mount like Databricks' Volumes.
S3 with credentials that only Spark has is in `test_object_store.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import VIEW, config_of, make_embeddings, make_keys, view_settings, write_table

from spark_dbp import RunConfig, open_run, run

KEYS, EMBEDDINGS = make_keys(2000), make_embeddings(2000, 16, 6)
CENTROIDS = np.random.default_rng(3).standard_normal((12, 16)).astype(np.float32)
CLUSTERS = (EMBEDDINGS @ CENTROIDS.T / np.linalg.norm(CENTROIDS, axis=1)).argmax(axis=1).astype(np.int32)


# Columns of the input beside keys and embeddings, and sections of the configuration.
NOTHING_GIVEN: tuple[dict, dict] = ({}, {})
CLUSTERED = ({"cluster": CLUSTERS}, {"input": {"cluster_id": "cluster"}})


def write_input(folder: Path, more: dict) -> Path:
    np.save(folder / "centroids.npy", CENTROIDS)
    return write_table(folder / "in", KEYS, EMBEDDINGS, n_files=3, **more)


def configure(path: Path, base: str, sections: dict, **more) -> Path:
    if "input" in sections:
        sections = {"input": {**sections["input"], "centroids": f"{base}/centroids.npy"}}
    path.write_text(yaml.safe_dump(config_of(f"{base}/in", f"{base}/run", **sections, **more)))
    return path


def start(*arguments, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "spark_dbp", *map(str, arguments)],
        capture_output=True, text=True, timeout=500, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done


def run_on_disk(spark, folder: Path, more: dict, sections: dict):
    folder.mkdir()
    write_input(folder, more)
    conf = configure(folder / "conf.yaml", str(folder), sections)
    return run(RunConfig.from_yaml(conf), spark)


@pytest.mark.slow
def test_a_store_that_only_spark_opens(spark, tmp_path):
    """Input, given centroids and output."""
    more, sections = CLUSTERED
    (tmp_path / "lake").mkdir()
    write_input(tmp_path / "lake", more)
    settings = view_settings(tmp_path / "lake")
    conf = configure(tmp_path / "conf.yaml", VIEW, sections, spark=settings)
    given = ["--set", *(f"{name}={value}" for name, value in settings.items())]

    first = start("run", conf)
    assert "viewfs://tests is reached by the Hadoop file system of the Spark session" in first.stderr
    made = open_run(tmp_path / "lake" / "run")
    assert (
        made.document["digests"] == run_on_disk(spark, tmp_path / "disk", more, sections).document["digests"]
    )
    assert "Writing the trie: reused" in start("run", conf).stderr
    start("select", f"{VIEW}/run", *given, "prune.keep_ratio=0.2", "--out", f"{VIEW}/run2")
    checked = start("verify", f"{VIEW}/run2", *given).stdout
    assert "ok  keep list as selected again" in checked
    assert "ok  trie holds the keys" in checked
    (tmp_path / "lake/run/tables/keep_list/failed").mkdir()
    assert "deleted" in start("clean", f"{VIEW}/run", *given).stdout
    assert not (tmp_path / "lake/run/tables/keep_list/failed").exists()
    lost = start("verify", f"{VIEW}/run", code=2).stderr  # without the settings
    assert "this process does not reach viewfs://tests" in lost


@pytest.mark.slow
def test_a_directory_that_renames_nothing(spark, whole_files_only, tmp_path):
    more, sections = NOTHING_GIVEN
    base = Path(whole_files_only["WHOLE_FILES_ONLY"]) / tmp_path.name
    base.mkdir()
    write_input(base, more)
    conf = configure(tmp_path / "conf.yaml", str(base), sections)

    start("run", conf, **whole_files_only)
    made = open_run(base / "run")
    assert (
        made.document["digests"] == run_on_disk(spark, tmp_path / "disk", more, sections).document["digests"]
    )
    assert "Writing the trie: reused" in start("run", conf, **whole_files_only).stderr
    start("select", base / "run", "--set", "prune.keep_ratio=0.2", "--out", base / "run2", **whole_files_only)
    assert "ok  trie holds the keys" in start("verify", base / "run2", **whole_files_only).stdout
    assert "nothing to delete" in start("clean", base / "run", **whole_files_only).stdout
