"""What is shipped: the wheel and the sdist in a clean venv, and the archive of a whole Python for EMR."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pyspark
import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table
from job.test_command import BIN, start

from spark_dbp import RunConfig, __version__, open_run, run

LOCK = ROOT / ("requirements-spark35.lock" if pyspark.__version__.startswith("3.5.") else "requirements.lock")
DEMO_DIGEST = "fc8ae021282c203b"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what is under version control, to build from: building leaves its debris."""
    folder = tmp_path_factory.mktemp("sources")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(sources) -> dict[str, Path]:
    done = start([sys.executable, "-m", "build", "--no-isolation", "--outdir", sources / "dist", sources])
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,), (sdist,) = (sources / "dist").glob("*.whl"), (sources / "dist").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.mark.slow
def test_what_wheel_and_sdist_hold(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
        metadata = Parser().parsestr(wheel.read(f"spark_dbp-{__version__}.dist-info/METADATA").decode())
        entries = wheel.read(f"spark_dbp-{__version__}.dist-info/entry_points.txt").decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "spark_dbp").rglob("*.py")}
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "spark_dbp/explore/report/assets").iterdir()}
    wanted = modules | assets | {"spark_dbp/py.typed", "spark_dbp/log4j2.properties"}
    info = f"spark_dbp-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == wanted
    assert any(name.endswith("LICENSE") for name in names)
    assert (metadata["Name"], metadata["Version"]) == ("spark-dbp", __version__)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.split(r"[<>=]", line)[0] for line in needed) == [
        "marisa-trie",
        "numpy",
        "pydantic",
        "pyyaml",
    ]
    assert "spark-dbp = spark_dbp.cli:main" in entries
    with tarfile.open(built["sdist"]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert wanted | {"pyproject.toml", "README.md", "LICENSE"} <= inside


@pytest.mark.long
def test_they_are_installed_into_a_clean_venv(built, tmp_path):
    """With nothing but what the wheel asks for; the sdist then takes its place."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    constraints = tmp_path / "constraints.txt"
    pins = re.findall(r"^([a-z0-9][\w.-]*==[^\\\n]*?) *\\?$", LOCK.read_text(), flags=re.MULTILINE)
    constraints.write_text("\n".join(pins))
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    extra = "spark35" if "spark35" in LOCK.name else "local"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def check(*command: object) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=900,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    check(*pip, f"{built['wheel']}[{extra}]")
    assert "doctor" in check(tmp_path / "venv/bin/spark-dbp", "--help")
    assert DEMO_DIGEST in check(tmp_path / "venv/bin/spark-dbp", "demo", tmp_path / "demo")
    check(*pip, "setuptools>=77")
    check(*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", built["sdist"])
    assert f"spark-dbp {__version__}" in check(tmp_path / "venv/bin/spark-dbp", "--version")
    shown = check(python, "-c", "import spark_dbp; print(spark_dbp.__file__)")
    assert shown.startswith(str(tmp_path / "venv"))


@pytest.mark.matrix
def test_the_archive_for_emr_runs_on_executors(spark, sources, tmp_path):
    """Executors that have no Python but the one of the archive; there is no spark_dbp beside it."""
    archive = tmp_path / "environment.tar.gz"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, sources / "conf/emr/make_archive.py", "--lock", LOCK, "--out", archive]
    made = subprocess.run(
        [str(a) for a in command], capture_output=True, text=True, timeout=600, env=environment
    )
    assert made.returncode == 0, made.stderr[-3000:]

    source = write_table(tmp_path / "in", make_keys(500), make_embeddings(500, 8, 4), n_files=4)
    minhash = {"minhash": {"column": "key", "threshold": 0.9}}  # datasketch and scipy come with it too
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of(source, tmp_path / "run", dedup=minhash)))
    (tmp_path / "work").mkdir()
    submit = [
        BIN / "spark-submit", "--master", "local-cluster[2,1,1024]", "--archives", f"{archive}#environment",
        "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=4",
    ]  # fmt: skip
    environment |= {
        "PYSPARK_PYTHON": "./environment/bin/python",
        # In client mode the driver gets no archive: it takes the same from where it was unpacked by hand.
        "PYSPARK_DRIVER_PYTHON": str(tmp_path / "driver/bin/python"),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_WORKER_DIR": str(tmp_path / "work"),
    }
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "driver", filter="fully_trusted")
    job = ROOT / "jobs/spark_dbp_job.py"

    def start_job(*arguments: object) -> str:
        command = [str(part) for part in (*submit, job, *arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    found = start_job("doctor", tmp_path / "conf.yaml")
    assert re.search(
        r"ok +python +Python 3\.\d+\.\d+ on driver and workers \(.*work.*/environment/bin/python", found
    )
    start_job("run", tmp_path / "conf.yaml")
    local = run(RunConfig.from_dict(config_of(source, tmp_path / "local", dedup=minhash)), spark)
    assert open_run(tmp_path / "run").document["digests"] == local.document["digests"]
