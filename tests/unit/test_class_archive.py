"""The archive of a local Java's classes: when it is recorded and used, and that nobody else can change it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spark_dbp.engine import session
from spark_dbp.engine.class_archive import share_classes
from spark_dbp.engine.java import read_java_version


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of this user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache/spark-dbp/classes"


@pytest.fixture
def java_home(tmp_path) -> Path:
    """What looks like a Java home with the archive of Java's own classes."""
    home = tmp_path / "java"
    (home / "lib/server").mkdir(parents=True)
    (home / "lib/server/classes.jsa").touch()
    (home / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="17.0.15"\n')
    return home


@pytest.fixture
def spark_home(tmp_path) -> Path:
    (tmp_path / "spark/jars").mkdir(parents=True)
    return tmp_path / "spark"


def record(java_home: Path, spark_home: Path, content: bytes = b"\xa8\xba\x0b\xf0", **how) -> Path:
    """Do as Java does at its end; returns the path that the archive then has."""
    options = share_classes(str(java_home), str(spark_home), records=True, **how)
    fresh = Path(next(o for o in options if "ArchiveClassesAtExit" in o).split("=")[1])
    fresh.write_bytes(content)
    fresh.chmod(0o444)
    share_classes(str(java_home), str(spark_home), records=False, **how)
    return fresh.with_name(f"{fresh.name.split('.')[0]}.jsa")


def test_it_is_recorded_only_where_that_is_asked_for_and_then_used(cache, java_home, spark_home):
    assert share_classes(str(java_home), str(spark_home), records=False) == []
    archive = record(java_home, spark_home)
    for records in (False, True):
        options = share_classes(str(java_home), str(spark_home), records=records)
        assert options[:2] == ["-Xshare:auto", f"-XX:SharedArchiveFile={archive}"]
        assert not any("AtExit" in option for option in options)


def test_what_java_did_not_finish_is_not_used(cache, java_home, spark_home):
    archive = record(java_home, spark_home, bytes(4096))
    assert not archive.exists()
    assert record(java_home, spark_home) == archive
    assert archive.exists()


def test_each_java_records_a_file_of_its_own(cache, java_home, spark_home):
    first, second = (share_classes(str(java_home), str(spark_home), records=True) for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    "changed", ["java/lib/server/classes.jsa", "java/release", "spark/jars/spark-core.jar"]
)
def test_another_java_or_spark_has_another_archive(cache, java_home, spark_home, tmp_path, changed):
    first = record(java_home, spark_home)
    time.sleep(0.01)
    content = 'JAVA_VERSION="17.0.16"\n' if changed.endswith("release") else "other"
    (tmp_path / changed).write_text(content)
    assert share_classes(str(java_home), str(spark_home), records=False) == []
    second = record(java_home, spark_home)
    assert second != first
    assert list(cache.glob("*.jsa")) == [second]  # the other one fits nothing any more


def test_only_unused_archives_of_others_are_deleted(cache, java_home, spark_home):
    used, unused = record(java_home, spark_home), record(java_home, spark_home, use="connect")
    month_ago = time.time() - 31 * 86_400
    for archive in (used, unused):
        os.utime(archive, (month_ago, month_ago))
    assert share_classes(str(java_home), str(spark_home), records=False)  # which is a use
    share_classes(str(java_home), str(spark_home), records=True, use="third")
    assert list(cache.glob("*.jsa")) == [used]


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.21", "21.0.8", ""])
def test_another_java_gets_no_options(cache, java_home, spark_home, version):
    (java_home / "release").write_text(f'JAVA_VERSION="{version}"\n')
    assert share_classes(str(java_home), str(spark_home), records=True) == []


@pytest.mark.parametrize("name", ["SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR", None])
def test_directories_with_files_on_the_class_path_are_left_as_they_are(
    cache, java_home, spark_home, monkeypatch, name
):
    folder = spark_home / "conf"
    folder.mkdir()
    (folder / "spark-defaults.conf").touch()
    if name is not None:
        folder = folder.rename(spark_home / "elsewhere")
        monkeypatch.setenv(name, str(folder))
    assert share_classes(str(java_home), str(spark_home), records=True) == []


def test_a_recording_that_was_cut_off_does_not_stay(cache, java_home, spark_home):
    record(java_home, spark_home, bytes(4096))
    cut_off = next(cache.glob("*.new"))
    share_classes(str(java_home), str(spark_home), records=True)
    assert cut_off.exists()  # a Java may be at it
    os.utime(cut_off, (time.time() - 7200, time.time() - 7200))
    share_classes(str(java_home), str(spark_home), records=True)
    assert not cut_off.exists()


@pytest.mark.parametrize("where", ["nowhere", "environment", "setting", "file"])
def test_java_gets_one_collector_only(cache, tmp_path, monkeypatch, where):
    """It does not start with two."""
    monkeypatch.delenv("JDK_JAVA_OPTIONS")  # conftest.py sets it
    settings = {}
    if where == "environment":
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC")
    elif where == "setting":
        settings["spark.driver.defaultJavaOptions"] = "-XX:+UseG1GC"
    elif where == "file":
        monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
        (tmp_path / "spark-defaults.conf").write_text("spark.driver.defaultJavaOptions -XX:+UseG1GC\n")
    options = session._choose_java_options(None, None, settings, records_classes=False)
    assert ("-XX:+UseParallelGC" in options) == (where == "nowhere")


def test_no_archive_for_a_class_path_of_the_users(cache, monkeypatch):
    monkeypatch.setattr(session, "share_classes", lambda *_, **__: ["shared"])
    for settings in ({}, {"spark.driver.extraClassPath": "/etc/hadoop/conf"}):
        options = session._choose_java_options(None, None, settings, records_classes=True)
        assert ("shared" in options) == (not settings)


def link_elsewhere(archive: Path) -> None:
    archive.rename(archive.with_name("elsewhere"))
    archive.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "plant",
    [
        lambda archive: archive.chmod(0o666),
        link_elsewhere,
        lambda archive: archive.parent.chmod(0o777),
        lambda archive: archive.parent.parent.parent.chmod(0o777),
    ],
    ids=["the file", "a link", "its directory", "the cache"],
)
def test_what_others_can_change_is_not_used(cache, java_home, spark_home, plant):
    plant(record(java_home, spark_home))
    assert share_classes(str(java_home), str(spark_home), records=True) == []


def test_without_a_place_java_starts_without(java_home, spark_home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert share_classes(str(java_home), str(spark_home), records=True) == []


_SESSION = """
import sys
from pathlib import Path
from spark_dbp.engine.session import start_local_session
spark = start_local_session(records_classes=True)
rows = spark.range(3).count()
process = spark.sparkContext._gateway.proc
maps = Path(f"/proc/{process.pid}/maps").read_text()
print(rows, *sorted({line.split()[-1] for line in maps.splitlines() if line.endswith(".jsa")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see which files Java has mapped")
def test_java_maps_the_archive_that_an_earlier_session_recorded(tmp_path):
    java = shutil.which("java")
    if java is None or read_java_version(java) != 17:
        pytest.skip("no Java 17 on the PATH")

    def start() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _SESSION],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "jsa" not in done.stderr
        rows, *mapped = done.stdout.split()
        assert rows == "3"
        return [path for path in mapped if path.startswith(str(tmp_path))]

    assert start() == []
    recorded = list((tmp_path / "spark-dbp/classes").iterdir())
    assert len(recorded) == 1
    assert start() == [str(recorded[0].with_name(f"{recorded[0].name.split('.')[0]}.jsa"))]
