"""What people see of a run in Spark's UI and history, and of its steps in run.json."""

from __future__ import annotations

import json
from pathlib import Path

import pyspark
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, write_table
from job.test_command import COMMAND, start

from spark_dbp import open_run

HAS_SERVER = not pyspark.__version__.startswith("3.5.")  # pyspark 3.5 brings no Connect server


@pytest.mark.slow
@pytest.mark.parametrize("session", ["classic", *(["connect"] if HAS_SERVER else [])])
def test_every_job_says_step_and_purpose(tmp_path, session, connect_port):
    """Read from the event log, which the history server shows."""
    source = write_table(tmp_path / "in", make_keys(400), make_embeddings(400, 8, 4), n_files=2)
    (tmp_path / "log").mkdir()
    spark = {
        "spark.eventLog.enabled": True,
        "spark.eventLog.compress": False,
        "spark.eventLog.dir": f"file://{tmp_path}/log",
        "spark.driver.memory": "1g",
        **({"spark.remote": "local[2]"} if session == "connect" else {}),
    }
    conf = tmp_path / "conf.yaml"
    conf.write_text(yaml.safe_dump(config_of(source, tmp_path / "run", spark=spark)))
    done = start([*COMMAND, "run", conf])
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [path for path in (tmp_path / "log").rglob("*") if path.is_file() and path.name[0] != "."]
    events = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    jobs = [event["Properties"] for event in events if event["Event"] == "SparkListenerJobStart"]
    words = [job.get("spark.job.description", "") for job in jobs]
    assert 10 < len(words) < 20  # few enough that each one can be accounted for
    assert [text for text in words if not text.startswith("spark-dbp")] == []
    stages = open_run(tmp_path / "run").document["stages"]
    for step in stages.keys() - {"keep_trie", "quota"}:  # quotas are the driver's own work
        assert any(text.startswith(f"spark-dbp {step}: ") for text in words), step
    assert "spark-dbp assign: Assigning every sample to its centroid (write assignments)" in words
    assert "spark-dbp: looking at the input" in words


def test_run_json_has_seconds_rows_and_bytes_of_every_step(spark, tmp_path):
    from spark_dbp import RunConfig, run

    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 8, 4))
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run")), spark)
    for step in done.document["stages"].values():
        assert step["seconds"] > 0
        assert step["rows"].keys() == step["bytes"].keys() == step["tables"].keys()
        for table, path in step["tables"].items():
            files = [file for file in Path(done.path, path).iterdir() if file.name[0] not in "._"]
            assert step["bytes"][table] == sum(file.stat().st_size for file in files) > 0
