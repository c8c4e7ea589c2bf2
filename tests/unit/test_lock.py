"""The lock: one run at a time, dead ones recognised, losers told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from spark_dbp.errors import ConflictError
from spark_dbp.lake import lock as locking
from spark_dbp.lake.store import open_run_directory


@pytest.fixture
def quick(monkeypatch):
    """Renewals and watches of another machine's locks in tenths of a second."""
    monkeypatch.setattr(locking, "RENEWED", 0.1)
    monkeypatch.setattr(locking, "WATCHED", 0.6)


def write_lock(base, **owner):
    base.mkdir(exist_ok=True)
    content = {"host": socket.gethostname(), "pid": os.getpid(), "token": "theirs", **owner}
    (base / "lock.json").write_text(json.dumps(content))


def pid_of_an_ended_process() -> int:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_second_run_is_refused_and_names_the_owner(tmp_path):
    path = str(tmp_path / "run")
    with (
        open_run_directory(path),
        pytest.raises(ConflictError, match=f"process {os.getpid()} on {socket.gethostname()}") as caught,
        open_run_directory(path),
    ):
        pass
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_the_lock_of_a_process_that_ended_is_taken_over_at_once(tmp_path):
    write_lock(tmp_path / "run", pid=pid_of_an_ended_process())
    with open_run_directory(str(tmp_path / "run")):
        assert json.loads((tmp_path / "run/lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run").exists()


def test_a_process_number_that_was_given_again_is_no_owner(tmp_path):
    write_lock(tmp_path / "run", started="an earlier boot")
    with open_run_directory(str(tmp_path / "run")):
        pass


def test_a_process_of_another_container_is_not_looked_up_by_its_number(tmp_path, quick):
    pid = pid_of_an_ended_process()
    write_lock(tmp_path / "run", pid=pid, process_space="pid:[1]")
    renewing = threading.Event()

    def renew():
        number = 0
        while not renewing.wait(0.1):
            number += 1
            write_lock(tmp_path / "run", pid=pid, process_space="pid:[1]", renewals=number)

    owner = threading.Thread(target=renew)
    owner.start()
    try:
        with pytest.raises(ConflictError, match=f"process {pid}"), open_run_directory(str(tmp_path / "run")):
            pass
    finally:
        renewing.set()
        owner.join()


def test_the_lock_of_another_machine_is_dead_when_nobody_renews_it(tmp_path, quick):
    write_lock(tmp_path / "run", host="elsewhere")
    with open_run_directory(str(tmp_path / "run")):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_lock_that_cannot_be_read_is_watched_as_well(tmp_path, quick, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock.json").write_text(content)
    with open_run_directory(str(tmp_path / "run")):
        pass


def test_the_owner_renews_its_lock(tmp_path, quick):
    with open_run_directory(str(tmp_path / "run")):
        path = tmp_path / "run/lock.json"
        before = json.loads(path.read_text())
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["renewals"] < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        after = json.loads(path.read_text())
        assert after["renewals"] >= 2
        assert {**after, "renewals": 0} == before


def test_who_lost_the_lock_commits_nothing_further(tmp_path):
    """A run that was suspended for so long that another took its directory over."""
    path = tmp_path / "run"
    with (
        pytest.raises(ConflictError, match=r"no longer this run's: process 7 on elsewhere"),
        open_run_directory(str(path)) as store,
    ):
        store.reuse_or_build("one", "One", {}, lambda writer: writer.report("t", 0))
        write_lock(path, host="elsewhere", pid=7)
        store.reuse_or_build("two", "Two", {}, lambda writer: writer.report("t", 0))
    assert [mark.name for mark in (path / "stages").iterdir()] == ["one.json"]
    assert json.loads((path / "lock.json").read_text())["pid"] == 7  # theirs is left alone
    (path / "lock.json").unlink()
    with pytest.raises(ConflictError, match="it was deleted"), open_run_directory(str(path)) as store:
        (path / "lock.json").unlink()
        store.commit({})
    assert not (path / "run.json").exists()


def test_of_many_that_take_a_dead_lock_over_one_wins(tmp_path):
    """Processes, for a lock is a matter between processes; each holds the lock until all have tried."""
    write_lock(tmp_path / "run", pid=pid_of_an_ended_process())
    code = (
        "import sys, time\n"
        "from spark_dbp.lake.lock import acquire_lock\n"
        "from spark_dbp.errors import ConflictError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with acquire_lock(sys.argv[1]): print('won', flush=True); sys.stdin.readline()\n"
        "except ConflictError: print('lost', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    runs = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 6
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    outcomes = [run.stdout.readline().strip() for run in runs]
    for run in runs:
        run.communicate("end\n", timeout=30)
    assert sorted(outcomes) == ["lost"] * 5 + ["won"]
