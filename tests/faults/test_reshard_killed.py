"""`spark-dbp reshard`, killed with SIGKILL while it writes, goes on: the same shards, those that were finished kept."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from made_shards import keys_of, write_run, write_shards

SIZES = [40, 40, 40]


def start(arguments: list) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "spark_dbp", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def digest(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.tar")}


@pytest.mark.long
def test_a_killed_reshard_goes_on(tmp_path):
    shards = write_shards(tmp_path / "shards", SIZES)
    run = write_run(tmp_path / "run", keys_of(SIZES))
    arguments = ["reshard", run, "--shards", *shards, "--samples", 1, "--out"]
    whole = start([*arguments, tmp_path / "whole"])
    assert whole.wait(timeout=200) == 0
    out = tmp_path / "out"
    killed = start([*arguments, out])
    until = time.monotonic() + 100
    while len(list(out.glob("*_stats.json"))) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 5 <= len(finished) < sum(SIZES)
    assert not (out / "_reshard.json").exists()
    again = start([*arguments, out])
    assert again.wait(timeout=200) == 0, again.stderr.read()
    assert "new shards are there already" in again.stderr.read()
    assert digest(out) == digest(tmp_path / "whole")
    stayed = [path for path, changed in finished.items() if path.stat().st_mtime_ns == changed]
    assert len(stayed) >= len(finished) - 2  # one may have had no stats yet
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
