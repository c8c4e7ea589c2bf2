"""The process is killed between two tables: a catalog that outlives it, Hive's on Derby, shows what is left.

The command, Spark and the metastore are those that users have; each step is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from spark_dbp import open_run

LOOK = """
import json, sys
from spark_dbp.engine.session import start_local_session
spark = start_local_session(json.loads(sys.argv[1]))
tables = {row.tableName: spark.read.table(f"default.{row.tableName}").count()
          for row in spark.sql("SHOW TABLES IN default").collect()}
print("RESULT", json.dumps(tables))
"""


@pytest.fixture
def metastore(tmp_path):
    return {
        "spark.sql.catalogImplementation": "hive",
        "spark.sql.warehouse.dir": str(tmp_path / "warehouse"),
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={tmp_path}/metastore;create=true",
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.memory": "1g",
    }


def start(arguments: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def count_rows(tmp_path: Path, metastore: dict) -> dict[str, int]:
    done = start(["-c", LOOK, json.dumps(metastore)], tmp_path)
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0, err[-3000:]
    return json.loads(out.split("RESULT ", 1)[1].splitlines()[0])


def run_command(tmp_path: Path, kill_after: str | None = None) -> str:
    process = start(["-m", "spark_dbp", "run", "conf.yaml"], tmp_path)
    if kill_after is None:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        return err + out
    for line in process.stderr:
        if kill_after in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    return ""


@pytest.mark.long
def test_killed_between_two_tables(tmp_path, metastore):
    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 4, 3))
    config = config_of(source, tmp_path / "run", cluster={"n_clusters": 3}, spark=metastore)
    config["output"]["table"] = "spark_catalog.default.p"
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump(config))
    run_command(tmp_path, kill_after="Published spark_catalog.default.p_cluster_stats")
    assert set(count_rows(tmp_path, metastore)) <= {"p_cluster_stats", "p_quotas"}
    assert (tmp_path / "run/run.json").exists()
    assert open_run(tmp_path / "run").published() == {}

    shown = run_command(tmp_path)
    assert "computed anew" not in shown
    assert "Published spark_catalog.default.p_keep_list: 18 rows" in shown
    assert "  keep_list             spark_catalog.default.p_keep_list" in shown
    assert count_rows(tmp_path, metastore) == {"p_cluster_stats": 3, "p_quotas": 3, "p_keep_list": 18}

    config["prune"] = {"keep_ratio": 0.5}
    conf.write_text(yaml.safe_dump(config))
    run_command(tmp_path, kill_after="Published spark_catalog.default.p_quotas")
    tables = count_rows(tmp_path, metastore)
    assert tables["p_keep_list"] == 18  # the old one, whole
    run_command(tmp_path)
    assert count_rows(tmp_path, metastore) == {"p_cluster_stats": 3, "p_quotas": 3, "p_keep_list": 30}
    assert "published already" in run_command(tmp_path)
