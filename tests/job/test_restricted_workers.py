"""Python workers that may not write to the output, while the driver and Spark may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table
from restricted_daemon import find_landlock

from spark_dbp import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_landlock(), reason="the kernel has no Landlock to take rights away with"),
]
SETTINGS = {
    "spark.python.daemon.module": "restricted_daemon",
    "spark.sql.shuffle.partitions": 2,
    "spark.driver.memory": "1g",
}


@pytest.fixture
def command(tmp_path, tmp_path_factory):
    """Runs spark-dbp on a configuration in `tmp_path`, with workers that may not write there."""
    embeddings = make_embeddings(90, 4, 3)
    embeddings[80:] = embeddings[:10]  # semantic duplicates
    captions = [f"caption number {i % 85} with some more words" for i in range(90)]
    pairs = [min(i, 88) for i in range(90)]
    more = {"caption": captions, "pair": pairs}
    source = write_table(tmp_path / "in", make_keys(90), embeddings, n_files=2, **more)
    dedup = {"semantic": {"eps": 0.01, "n_clusters": 2}}
    config = config_of(source, tmp_path / "run", cluster={"n_clusters": 3}, dedup=dedup, spark=SETTINGS)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config))
    scratch = tmp_path_factory.mktemp("scratch")

    def run(*arguments: str, hidden: str = "") -> subprocess.CompletedProcess:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {"PYTHONPATH": paths, "SPARK_LOCAL_DIRS": str(scratch), "SPARK_DBP_TEST_HIDDEN": hidden}
        return subprocess.run(
            [sys.executable, "-m", "spark_dbp", *arguments], capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, **environment}, timeout=300,
        )  # fmt: skip

    return run


def test_auto_takes_sql_and_the_run_is_whole(command, tmp_path):
    done = command("run", "conf.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "engine sql: a task on " in done.stderr
    assert " cannot read and write there: " in done.stderr
    engine = open_run(tmp_path / "run").document["engine"]
    assert engine["name"] == "sql"
    assert "Permission denied" in engine["why"]
    verified = command("verify", "run", *(f"--set={name}={value}" for name, value in SETTINGS.items()))
    assert verified.returncode == 0, verified.stderr[-3000:]
    assert "by engine arrow (not sql)" in verified.stdout  # these workers may read


def test_every_step_where_workers_can_read_neither_input_nor_output(command, tmp_path):
    """Spark hands them all that they see. Some clusters are verified in numpy."""
    hidden = str(tmp_path)
    more = {
        "dedup.exact.columns": "[pair]", "dedup.minhash": "{column: caption, threshold: 0.9}",
        "dedup.semantic.groups": "connected", "cluster.train": "full", "trie.shards": 2,
    }  # fmt: skip
    done = command(
        "run", "conf.yaml", *(f"--set={name}={value}" for name, value in more.items()), hidden=hidden
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = open_run(tmp_path / "run")
    assert run.document["engine"]["name"] == "sql"
    assert all(n > 0 for reason, n in run.document["accounting"]["dropped"].items() if "duplicates" in reason)
    verified = command(
        "verify", "run", *(f"--set={name}={value}" for name, value in SETTINGS.items()), hidden=hidden
    )
    assert verified.returncode == 0, verified.stderr[-3000:]
    assert "3 clusters computed again in numpy, for workers cannot read the run" in verified.stdout
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    exported = command("export", "run", "--to", "clip_retrieval", "--out", "kept", *settings, hidden=hidden)
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert len(np.load(tmp_path / "kept/img_emb/img_emb_0.npy")) == run.document["rows"]["keep_list"]


def test_arrow_is_refused(command, tmp_path):
    done = command("run", "conf.yaml", "--set", "engine=arrow")
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"engine: arrow cannot work with output.path {tmp_path / 'run'}: a task on " in done.stderr
    assert "set engine: auto" in done.stderr
    assert not Path(tmp_path, "run").exists()
