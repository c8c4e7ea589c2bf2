"""``spark-dbp doctor`` as users start it: what is well, and what is broken for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyspark
import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from job.test_command import COMMAND, start
from spark_dbp.cli import main
from spark_dbp.explore import doctor

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("data") / "in", make_keys(40), make_embeddings(40, 8, 4))


def write_conf(folder: Path, source: Path, **sections) -> Path:
    conf = folder / "conf.yaml"
    conf.write_text(yaml.safe_dump(config_of(source, folder / "deep" / "run", **sections)))
    return conf


def ask(capsys, *arguments) -> tuple[int, list[dict]]:
    """The exit code and the findings, in the session of this process."""
    code = main(["doctor", *map(str, arguments), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["can_run"] == (code == 0)
    return code, document["findings"]


def test_all_is_well_and_nothing_is_left(spark, source, tmp_path, capsys):
    conf = write_conf(tmp_path, source)
    code, found = ask(capsys, conf)
    assert code == 0
    assert {finding["status"] for finding in found} == {"ok"}
    said = {finding["about"]: finding["what"] for finding in found}
    about = ["spark", "settings", "workers", "java", "python", "packages", "memory", "space"]
    assert list(said) == [*about, "storage", "engine", "input"]
    assert said["engine"].startswith("arrow: ")
    assert sorted(tmp_path.iterdir()) == [conf]


@pytest.mark.parametrize(
    ("sections", "about", "what"),
    [
        ({"input": {"path": "/no/such/table"}}, "input", "no such path (input.path /no/such/table)"),
        ({"input": {"path": None, "table": "no_such_table"}}, "input", "no such table (input.table no_such_table)"),
        ({"output": {"table": "spark_catalog.no_such_schema.x"}}, "catalog", "output.table spark_catalog.no_such_schema.x: the session finds no schema"),
        ({"output": {"path": "/proc/no/run"}}, "storage", "the driver cannot write below output.path /proc/no/run"),
    ],
)  # fmt: skip
def test_what_the_configuration_names_is_not_there(spark, source, tmp_path, capsys, sections, about, what):
    code, found = ask(capsys, write_conf(tmp_path, source, **sections))
    assert code == 3
    (problem,) = [finding for finding in found if finding["status"] == "problem"]
    assert problem["about"] == about
    assert problem["what"].startswith(what)
    assert problem["mend"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such.yaml"], "cannot read /no/such.yaml"),
        (["--set", "prune.keep_ratio=0.5"], "doctor without CONF takes no settings but spark.*"),
    ],
)
def test_a_wrong_command_exits_2(arguments, words, capsys):
    assert main(["doctor", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_cluster_that_starts_no_executor(spark, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    monkeypatch.setattr(doctor, "ask_workers", lambda spark, modules: time.sleep(3))
    code, found = ask(capsys)
    assert code == 3
    assert found[-1]["what"] == "no task has ended within 0 seconds"
    assert "spark.executor.cores" in found[-1]["mend"]


def submit(wrapper: Path | str, *arguments: object) -> subprocess.CompletedProcess:
    """The doctor through spark-submit, with another Python for the workers."""
    home = Path(pyspark.__file__).parent
    command = [home / "bin/spark-submit", "--master", "local[1]", "--driver-memory", "1g"]
    environment = {
        "PYSPARK_PYTHON": str(wrapper),
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "SPARK_HOME": str(home),
    }
    # Not from here: workers would find this very package in their working directory.
    elsewhere = Path(wrapper).parent
    return start([*command, ROOT / "jobs/spark_dbp_job.py", "doctor", *arguments], environment, cwd=elsewhere)


def make_worker(folder: Path, **modules: str) -> Path:
    """A Python that finds other `modules` before its own: module name to its source."""
    for name, text in modules.items():
        (folder / "lib" / name).mkdir(parents=True)
        (folder / "lib" / name / "__init__.py").write_text(text)
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/lib:$PYTHONPATH exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.mark.slow
def test_workers_with_other_packages(tmp_path):
    """Another version of this package, and none of another one."""
    gone = 'raise ImportError("libmarisa.so: cannot open shared object file")\n'
    done = submit(make_worker(tmp_path, spark_dbp='__version__ = "0.0.9"\n', marisa_trie=gone))
    assert done.returncode == 3, done.stderr[-2000:]
    assert "problem  packages     spark_dbp 0.1.0 on the driver and 0.0.9 on workers on " in done.stdout
    assert "cannot import marisa_trie: libmarisa.so: cannot open shared object file" in done.stdout
    assert "to mend it:  install marisa-trie there" in done.stdout
    assert done.stdout.endswith("A job cannot run here: 2 problems, 0 warnings.\n")


PYTHON_39 = """
import collections, sys
sys.version_info = collections.namedtuple("V", "major minor micro releaselevel serial")(3, 9, 1, "final", 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "about", "what"),
    [
        ({"sitecustomize": PYTHON_39}, "python", "different versions of Python: 3.9 and 3."),
        (
            {"pyarrow": "raise ModuleNotFoundError(\"No module named 'pyarrow'\")\n"},
            "packages",
            "pyarrow is missing on workers, or on the driver",
        ),
        (None, "python", "workers cannot start Python as "),
    ],
    ids=["python", "pyarrow", "no python"],
)
def test_workers_that_cannot_answer(tmp_path, modules, about, what):
    wrapper = tmp_path / "nothing" if modules is None else make_worker(tmp_path, **modules)
    done = submit(wrapper, "--json")
    assert done.returncode == 3, done.stderr[-2000:]
    found = json.loads(done.stdout)["findings"][-1]
    assert (found["about"], found["status"]) == (about, "problem")
    assert what in found["what"]
    assert found["mend"]


@pytest.mark.slow
def test_a_directory_that_may_not_be_written(tmp_path):
    """As a user without root's right to write everywhere."""
    (tmp_path / "theirs").mkdir(mode=0o555)
    plain = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = start([*plain, *COMMAND, "doctor", "--output", tmp_path / "theirs" / "run"])
    assert done.returncode == 3, done.stderr[-2000:]
    assert (
        f"problem  storage      the driver cannot write below output.path {tmp_path}/theirs/run: "
        in done.stdout
    )
    assert "name a directory or a store that this user may write to" in done.stdout
    assert list((tmp_path / "theirs").iterdir()) == []


@pytest.mark.slow
def test_no_java(tmp_path):
    """A session that cannot start is a finding, not a trace."""
    code = (
        "import sys; from spark_dbp.engine import java; from spark_dbp.cli import main\n"
        "java.list_supported_java = lambda: (98, 99)\n"
        "sys.exit(main(['doctor']))"
    )
    done = start([sys.executable, "-c", code])
    assert done.returncode == 3
    assert done.stdout.startswith("problem  session      no Java 98 or 99 found")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(IS_SPARK_35, reason="pyspark 3.5 brings no Connect server")
def test_on_connect(tmp_path, source, connect_port):
    done = start([*COMMAND, "doctor", write_conf(tmp_path, source), "--set", "spark.remote=local[2]"])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith("A job can run here: 0 problems, 0 warnings.\n")
