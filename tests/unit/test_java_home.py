"""The Java wrapper: no other user can own or change the `java` that is run."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT

from spark_dbp.engine import java


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this user; a temporary directory of its own to see what is made there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    java._make_temporary_directory.cache_clear()
    yield tmp_path / "cache"
    java._make_temporary_directory.cache_clear()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def check_works(home: Path) -> None:
    program = home / "bin/java"
    assert [mode_of(path) for path in (home, home / "bin", program)] == [0o700] * 3
    command = [program, "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "openjdk version" in done.stderr


def test_it_lies_in_the_users_cache_and_is_for_the_user_alone(cache):
    home = java._wheel_java_home()
    assert home.parent == cache / "spark-dbp"
    assert mode_of(home.parent) == 0o700
    check_works(home)
    made = (home / "bin/java").stat().st_mtime_ns
    assert java._wheel_java_home() == home
    assert (home / "bin/java").stat().st_mtime_ns == made  # it is not written again
    assert list((cache.parent / "tmp").iterdir()) == []


def test_without_a_setting_it_lies_in_the_home(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert java._wheel_java_home().parent == tmp_path / "me/.cache/spark-dbp"


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 7\n", ""])
def test_another_content_is_written_anew(cache, content):
    program = java._wheel_java_home() / "bin/java"
    program.write_text(content)
    check_works(java._wheel_java_home())


def plant_directory(mode: int):
    def plant(path: Path, elsewhere: Path) -> None:
        path.mkdir()
        path.chmod(mode)

    return plant


def plant_link(path: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    path.symlink_to(elsewhere)


PLANTS = {
    "writable by all": plant_directory(0o777),
    "of the group": plant_directory(0o770),
    "readable by all": plant_directory(0o755),
    "link": plant_link,
    "dangling link": lambda path, _: path.symlink_to("/no/such"),
    "file": lambda path, _: path.touch(),
}


@pytest.mark.parametrize("level", [".", "bin", ".."], ids=["home", "bin", "spark-dbp"])
@pytest.mark.parametrize("plant", PLANTS)
def test_what_was_planted_is_not_used(cache, tmp_path, plant, level):
    place = Path(os.path.normpath(java._wheel_java_home() / level))
    shutil.rmtree(place)
    PLANTS[plant](place, tmp_path / "elsewhere")
    check_is_fresh(java._wheel_java_home(), tmp_path)
    assert not (tmp_path / "elsewhere").exists() or not any((tmp_path / "elsewhere").iterdir())


def check_is_fresh(home: Path, tmp_path: Path) -> None:
    """A new directory, of a name that nobody could know before; one for each process."""
    assert home.parent == tmp_path / "tmp"
    check_works(home)
    assert java._wheel_java_home() == home


def test_what_another_user_owns_is_not_used(cache, tmp_path, monkeypatch):
    java._wheel_java_home()
    real = Path.lstat

    def lstat(path):
        found = real(path)
        if path.name == "spark-dbp":
            return os.stat_result([*found[:4], found.st_uid + 1, *found[5:]])
        return found

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(java, "_write_program", write_program := Recorder(java._write_program))
    home = java._wheel_java_home()
    assert write_program.paths == [home / "bin/java"]
    monkeypatch.undo()
    assert tmp_path / "tmp" == home.parent


class Recorder:
    def __init__(self, function):
        self.function, self.paths = function, []

    def __call__(self, path, script):
        self.paths.append(path)
        return self.function(path, script)


@pytest.mark.parametrize("plant", ["link", "loose"])
def test_a_planted_program_is_replaced(cache, tmp_path, plant):
    """In a directory of the user's own, where only the user can have put it."""
    program = java._wheel_java_home() / "bin/java"
    script = program.read_text()
    if plant == "link":
        (tmp_path / "other").write_text(script)
        (tmp_path / "other").chmod(0o700)
        program.unlink()
        program.symlink_to(tmp_path / "other")
    else:
        program.chmod(0o777)
    check_works(java._wheel_java_home())
    assert not program.is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_other_users_can_change_is_not_used(cache, tmp_path, mode):
    """They could put another directory in place of ours."""
    cache.mkdir()
    cache.chmod(mode)
    check_is_fresh(java._wheel_java_home(), tmp_path)
    cache.chmod(mode | stat.S_ISVTX)  # as /tmp: only owners rename there
    assert java._wheel_java_home().parent == cache / "spark-dbp"


def test_a_cache_of_another_user_is_not_used(cache, tmp_path, monkeypatch):
    cache.mkdir()
    real = Path.stat

    def owned_by_another(path, **options):
        found = real(path, **options)
        return os.stat_result([*found[:4], 12345, *found[5:]]) if path == cache else found

    monkeypatch.setattr(Path, "stat", owned_by_another)
    home = java._wheel_java_home()
    monkeypatch.undo()
    assert home.parent == tmp_path / "tmp"


@pytest.mark.parametrize("what", ["file", "no home"])
def test_without_a_place_for_a_cache(cache, tmp_path, monkeypatch, what):
    if what == "file":
        cache.touch()
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    check_is_fresh(java._wheel_java_home(), tmp_path)


def test_the_temporary_directory_goes_with_the_process(tmp_path):
    code = "from spark_dbp.engine import java; print(java._wheel_java_home(), flush=True)"
    environment = {**os.environ, "XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
