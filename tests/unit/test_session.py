"""Settings of local sessions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from spark_dbp.session import _worker_sockets

FOLDER = "spark.python.unix.domain.socket.dir"


@pytest.mark.parametrize("master", ["local", "local[2,4]", "local-cluster[2,1,1024]"])
def test_workers_of_this_machine_have_unix_sockets(master, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    settings = _worker_sockets(master)
    assert settings["spark.python.unix.domain.socket.enabled"] == "true"
    folder = Path(settings[FOLDER])
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0  # nobody else's
    assert len(str(folder / f".{'u' * 36}.sock")) < 104


@pytest.mark.parametrize("master", ["yarn", "spark://host:7077", "k8s://https://host"])
def test_workers_elsewhere_do_not(master):
    assert _worker_sockets(master) == {}


def test_a_temporary_directory_too_long_for_sockets(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert _worker_sockets("local[*]") == {}
    assert list(long.iterdir()) == []
