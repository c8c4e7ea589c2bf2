"""Processes that share a GPU take turns; a process that dies gives its place back."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

from spark_dbp.encoders import process
from spark_dbp.encoders.devices import choose_devices, choose_dtype
from spark_dbp.encoders.gpu_slots import acquire_slot
from spark_dbp.errors import ConfigError, SparkDbpError


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield
    tempfile.tempdir = None


def test_as_many_as_there_are_slots():
    first, second = acquire_slot(["cuda:0"], 2), acquire_slot(["cuda:0"], 2)
    with pytest.raises(SparkDbpError, match=r"embed\.workers_per_gpu"):
        acquire_slot(["cuda:0"], 2, patience_s=0)
    assert acquire_slot(["cuda:0", "cuda:1"], 2).device == "cuda:1"
    first.release()
    acquire_slot(["cuda:0"], 2, patience_s=0).release()
    second.release()


def test_other_processes_and_their_death():
    code = (
        "import time; from spark_dbp.encoders.gpu_slots import acquire_slot\n"
        "slot = acquire_slot(['cuda:0'], 1); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SparkDbpError):
            acquire_slot(["cuda:0"], 1, patience_s=0)
    finally:
        other.kill()
        other.wait()
    acquire_slot(["cuda:0"], 1, patience_s=5).release()


def test_who_holds_a_slot_sees_that_another_waits():
    slot = acquire_slot(["cuda:0"], 1)
    assert not slot.is_awaited()
    got = []
    waiter = threading.Thread(target=lambda: got.append(acquire_slot(["cuda:0"], 1, patience_s=20)))
    waiter.start()
    end = time.monotonic() + 10
    while not slot.is_awaited() and time.monotonic() < end:
        time.sleep(0.02)
    assert slot.is_awaited()
    slot.release()
    waiter.join(20)
    assert got and not got[0].is_awaited()


def test_numbers_of_gpus(monkeypatch):
    assert choose_devices("cuda:1", "0", [0, 1]) == ["cuda:1"]
    with pytest.raises(ConfigError, match="names the GPU 5"):
        choose_devices("auto", "5", [0, 1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert choose_devices("auto", "7", [0, 1]) == ["cuda:1"]
    assert choose_dtype("float16", "cuda:0") == "float16"


class _Model:
    name, device, batch_size, dtype = "a model", "cpu", 4, "float32"


def _wait_for(slots: list, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not slots and time.monotonic() < end:
        time.sleep(0.05)
    return bool(slots)


def test_an_idle_model_makes_way_and_one_at_work_does_not(monkeypatch):
    monkeypatch.setattr(process, "_IDLE_S", 0.4)
    loaded = process.LoadedEncoder(_Model(), None, acquire_slot(["cuda:0"], 1))
    monkeypatch.setitem(process._loaded, "here", loaded)
    process.use_encoder(loaded)
    process.leave_encoder(loaded)
    time.sleep(1)
    assert "here" in process._loaded  # no one waits
    process.use_encoder(loaded)
    got: list = []
    threading.Thread(
        target=lambda: got.append(acquire_slot(["cuda:0"], 1, patience_s=20)), daemon=True
    ).start()
    assert not _wait_for(got, 1)
    process.leave_encoder(loaded)
    process.use_encoder(loaded)  # the next task comes soon
    assert not _wait_for(got, 1)
    process.leave_encoder(loaded)
    assert _wait_for(got, 5)
    assert "here" not in process._loaded
    got[0].release()


def test_an_idle_model_makes_way_for_who_comes_later(monkeypatch):
    monkeypatch.setattr(process, "_IDLE_S", 0.2)
    loaded = process.LoadedEncoder(_Model(), None, acquire_slot(["cuda:0"], 1))
    monkeypatch.setitem(process._loaded, "here", loaded)
    process.use_encoder(loaded)
    process.leave_encoder(loaded)
    time.sleep(1)
    acquire_slot(["cuda:0"], 1, patience_s=10).release()
