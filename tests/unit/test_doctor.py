"""What the doctor says of reports: tables of versions, limits and errors."""

from __future__ import annotations

import time

import pytest

from spark_dbp.engine.patience import finish_within
from spark_dbp.errors import ConfigError
from spark_dbp.explore.diagnosis import (
    Finding,
    check_driver_packages,
    check_spark,
    check_workers,
    explain_failed_task,
)
from spark_dbp.explore.doctor import Wishes, can_run, examine, format_findings, to_document
from spark_dbp.explore.workers import WorkerReport

GB = 1 << 30
PACKAGES = {
    "numpy": "2.4.6",
    "pyarrow": "26.0.1",
    "marisa_trie": "1.4.1",
    "pandas": "2.3.3",
    "spark_dbp": "0.1.0",
    "pyspark": "4.3.0",
    "pydantic": "2.14.4",
    "yaml": "6.0.4",
}
DRIVER = {"python": "3.11.7", "packages": PACKAGES, "free": {"/tmp": 50 * GB}}
NEEDED = {"numpy": "numpy", "pyarrow": "pyarrow", "marisa_trie": "marisa-trie"}


def report(host="a", packages=None, **more):
    of_worker = {name: PACKAGES[name] for name in (*NEEDED, "pandas", "spark_dbp")} | (packages or {})
    fields = {
        "host": host,
        "java": "17.0.15",
        "python": "3.11.9",
        "executable": "/usr/bin/python3",
        "packages": of_worker,
        "memory": 8 * GB,
        "memory_of": "the machine",
        "free": {"/tmp": 20 * GB},
    }
    return WorkerReport(**(fields | more))


def judge(*reports):
    return list(check_workers(DRIVER, list(reports), NEEDED))


def test_all_is_well():
    found = judge(report(), report("b"))
    assert {finding.status for finding in found} == {"ok"}
    assert {finding.about for finding in found} == {
        "workers",
        "java",
        "python",
        "packages",
        "memory",
        "space",
    }
    assert found[0].what == "2 tasks run at once on a, b"


@pytest.mark.parametrize(
    ("of_worker", "status", "what"),
    [
        ({"python": "3.12.1"}, "problem", r"Python 3.11.7 on the driver, 3.12.1 on b: /usr/bin/python3"),
        ({"packages": {"spark_dbp": "0.0.9"}}, "problem", "spark_dbp 0.1.0 on the driver and 0.0.9 on workers on b"),
        ({"packages": {"numpy": "1.26.4"}}, "problem", "numpy 2.4.6 on the driver and 1.26.4 on workers on b"),
        ({"packages": {"numpy": "2.1.0"}}, None, None),
        ({"packages": {"pyarrow": "15.0.2"}}, "warning", "pyarrow 26.0.1 on the driver and 15.0.2 on workers on b"),
        ({"packages": {"pandas": "missing: No module"}}, None, None),
        (
            {"packages": {"marisa_trie": "missing: No module named 'marisa_trie'"}},
            "problem",
            "workers on b cannot import marisa_trie: No module named 'marisa_trie'",
        ),
        ({"packages": {"spark_dbp": "missing: gone"}}, "problem", "workers on b cannot import spark_dbp: gone"),
        ({"java": "25.0.2"}, "problem", "Java 25.0.2 may corrupt data"),
        ({"java": "8.0.392"}, "warning", "Java 8.0.392 runs the executors"),
        ({"java": ""}, None, None),
        ({"memory": GB // 2}, "warning", "a task may take 0.5 GB (of the machine on b), and may need 1 GB"),
        ({"memory": None, "memory_of": ""}, None, None),
        ({"free": {"/scratch": -1}}, "problem", "temporary files cannot be written to /scratch on b"),
        ({"free": {"/scratch": GB // 4}}, "warning", "0.2 GB free for temporary files in /scratch on b"),
    ],
)  # fmt: skip
def test_one_worker_differs(of_worker, status, what):
    found = [finding for finding in judge(report(), report("b", **of_worker)) if finding.status != "ok"]
    if status is None:
        assert found == []
        return
    (finding,) = found
    assert finding.status == status
    assert finding.what.startswith(what)
    assert finding.mend


def test_the_memory_of_a_machine_is_shared_by_its_tasks_and_that_of_a_process_is_not():
    shared = [report(memory=3 * GB) for _ in range(4)]
    assert "a task may take 0.8 GB (of the machine on a)" in format_findings(judge(*shared))
    own = [report(memory=3 * GB, memory_of="the process (ulimit -v)") for _ in range(4)]
    assert "a task may take 3.0 GB (of the process (ulimit -v) on a)" in format_findings(judge(*own))


@pytest.mark.parametrize(
    ("server", "client", "status"),
    [
        ("4.3.0", "4.3.0", "ok"),
        ("3.5.9", "3.5.2", "ok"),
        ("4.1.0", "4.0.1", "warning"),
        ("3.4.1", "3.4.1", "warning"),
        ("5.0.0", "5.0.0", "warning"),
        ("15.4.x-scala2.12", "15.4.0", "warning"),
    ],
)
def test_versions_of_spark(server, client, status):
    (finding,) = check_spark(server, client)
    assert finding.status == status


@pytest.mark.parametrize(
    ("packages", "status", "what"),
    [
        ({}, None, None),
        ({"pyspark": "3.5.9", "numpy": "2.0.0"}, "warning", "numpy 2.0.0 with pyspark 3.5.9"),
        ({"pandas": "3.0.0"}, "warning", "pandas 3.0.0 with pyspark 4.3.0"),
        ({"yaml": "missing: No module named 'yaml'"}, "problem", "the driver cannot import yaml"),
    ],
)
def test_packages_of_the_driver(packages, status, what):
    found = list(check_driver_packages(PACKAGES | packages, NEEDED))
    assert [finding.status for finding in found] == ([] if status is None else [status])
    assert all(finding.what.startswith(what) and finding.mend for finding in found)


@pytest.mark.parametrize(
    ("text", "about", "what"),
    [
        (
            "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9 than that in driver: 3.11, PySpark",
            "python",
            "driver and workers have different versions of Python: 3.9 and 3.11",
        ),
        (
            "Python in worker has different version (3, 8) than that in driver 3.11, PySpark cannot run",
            "python",
            "driver and workers have different versions of Python: 3.8 and 3.11",
        ),
        ("ModuleNotFoundError: No module named 'pyarrow'", "packages", "pyarrow is missing"),
        ("[X] PyArrow >= 11.0.0 must be installed; however, it was not found.", "packages", "pyarrow is missing"),
        ('java.io.IOException: Cannot run program "/x/python": error=2', "python", "workers cannot start Python as /x"),
        ("something else", "workers", "a task failed: something else"),
    ],
)  # fmt: skip
def test_why_a_task_failed(text, about, what):
    found = explain_failed_task(ValueError(text))
    assert (found.about, found.status) == (about, "problem")
    assert found.what.startswith(what)
    assert found.mend


def test_a_session_that_does_not_start_is_a_finding():
    def fail():
        raise ConfigError("Spark does not start: no", mend="check the `spark` section")

    found = examine(fail, Wishes())
    assert found == [Finding("session", "problem", "Spark does not start: no", "check the `spark` section")]
    assert not can_run(found)
    assert to_document(found)["can_run"] is False
    assert format_findings(found).endswith("A job cannot run here: 1 problem, 0 warnings.")


def test_work_that_takes_too_long_and_work_that_fails():
    with pytest.raises(TimeoutError):
        finish_within(0.05, lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        finish_within(9, lambda: 1 / 0)
