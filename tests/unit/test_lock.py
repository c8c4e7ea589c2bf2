"""The lock: one run at a time, dead ones recognised, losers told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.lake import lock as locking
from spark_dbp.lake.store import open_run_directory


@pytest.fixture
def quick(monkeypatch):
    """Renewals and watches of another machine's locks in tenths of a second."""
    monkeypatch.setattr(locking, "RENEWED", 0.1)
    monkeypatch.setattr(locking, "WATCHED", 0.6)
    monkeypatch.setattr(locking, "RETRIED", 0.02)
    monkeypatch.setattr(locking, "PATIENCE", 0.5)


def write_lock(base, **owner):
    """A lock of this machine; None leaves a field out, as earlier versions did."""
    base.mkdir(exist_ok=True)
    content = {**locking._find_process_space(), "pid": os.getpid(), "token": "theirs", **owner}
    content = {name: value for name, value in content.items() if value is not None}
    (base / "lock.json").write_text(json.dumps(content))


@contextmanager
def renewed_lock(base, **owner):
    """A lock that its owner renews all the time."""
    done = threading.Event()

    def renew():
        number = 0
        while not done.wait(0.1):
            number += 1
            write_lock(base, renewals=number, **owner)

    write_lock(base, **owner)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Disk:
    """Reads and writes of the lock fail as often as asked, by `count` of them or until `mended`."""

    def __init__(self, monkeypatch):
        self.failing = {"read": 0.0, "write": 0.0}
        self.failed = {"read": 0, "write": 0}
        for what, name in (("read", "read_bytes"), ("write", "write_bytes")):
            monkeypatch.setattr(files, name, self._wrap(what, getattr(files, name)))

    def _wrap(self, what, original):
        def call(path, *content):
            if path.endswith("lock.json") and self.failing[what] > 0:
                self.failing[what] -= 1
                self.failed[what] += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return original(path, *content)

        return call


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param({"process_space": "pid:[1]"}, id="container"),
        # The first name space has the same number on every machine.
        pytest.param({"boot": "another machine of this name"}, id="boot"),
        pytest.param({"host": "elsewhere"}, id="host"),
        pytest.param({"boot": None}, id="earlier version"),
        pytest.param({"boot": None, "process_space": None}, id="first version"),
    ],
)
def test_a_process_of_another_machine_is_not_looked_up_by_its_number(tmp_path, quick, elsewhere):
    """Its number is free here, or another process's, and it renews its lock."""
    pid = pid_of_an_ended_process()
    with (
        renewed_lock(tmp_path / "run", pid=pid, **elsewhere),
        pytest.raises(ConflictError, match=f"process {pid}"),
        open_run_directory(str(tmp_path / "run")),
    ):
        pass
    # When it ends, it is found out by watching.
    write_lock(tmp_path / "run", pid=os.getpid(), **elsewhere)
    with open_run_directory(str(tmp_path / "run")):
        pass


def test_where_the_boot_is_not_known_no_process_is_looked_up(tmp_path, quick, monkeypatch):
    here = {**locking._find_process_space(), "boot": ""}
    monkeypatch.setattr(locking, "_find_process_space", lambda: here)
    pid = pid_of_an_ended_process()
    with (
        renewed_lock(tmp_path / "run", pid=pid),
        pytest.raises(ConflictError, match=f"process {pid}"),
        open_run_directory(str(tmp_path / "run")),
    ):
        pass


def test_this_machine_is_known():
    here = locking._find_process_space()
    assert here["host"] == socket.gethostname()
    assert all(here.values())


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


def renewals(base):
    return json.loads((base / "lock.json").read_text())["renewals"]


def test_the_owner_renews_its_lock(tmp_path, quick):
    with open_run_directory(str(tmp_path / "run")):
        path = tmp_path / "run/lock.json"
        before = json.loads(path.read_text())
        wait_until(lambda: renewals(tmp_path / "run") >= 2)
        after = json.loads(path.read_text())
        assert {**after, "renewals": 0} == before


@pytest.mark.parametrize("what", ["read", "write"])
def test_errors_that_pass_do_not_end_the_renewal(tmp_path, quick, disk, caplog, what):
    with open_run_directory(str(tmp_path / "run")) as store:
        disk.failing[what] = 3
        wait_until(lambda: disk.failing[what] == 0)
        before = renewals(tmp_path / "run")
        wait_until(lambda: renewals(tmp_path / "run") > before)
        store.commit({})
    assert [record.getMessage() for record in caplog.records].count(
        f"cannot renew {tmp_path}/run/lock.json, trying on: "
        + (
            "Input/output error"
            if what == "write"
            else f"the lock {tmp_path}/run/lock.json cannot be read, so it is not known whose it is: "
            "Input/output error"
        )
    ) == 1
    assert not (tmp_path / "run/lock.json").exists()


def test_a_lock_that_is_not_renewed_in_time_is_still_the_owners_until_another_takes_it(
    tmp_path, quick, disk, caplog
):
    with open_run_directory(str(tmp_path / "run")) as store:
        disk.failing["write"] = float("inf")
        wait_until(lambda: "another run may take it for dead" in caplog.text)
        disk.failing["write"] = 0
        before = renewals(tmp_path / "run")
        wait_until(lambda: renewals(tmp_path / "run") > before)
        store.commit({})
    assert caplog.text.count("another run may take it for dead") == 1


def test_a_directory_in_place_of_the_lock_for_a_moment(tmp_path, quick, caplog):
    """No injected error: the system itself refuses to read."""
    with open_run_directory(str(tmp_path / "run")) as store:
        lock, aside, link = tmp_path / "run/lock.json", tmp_path / "aside", tmp_path / "link"
        shutil.copy(lock, aside)

        def is_noticed() -> bool:
            if not lock.is_symlink():  # at first, and where a renewal was under way just then
                link.symlink_to(tmp_path, target_is_directory=True)
                link.replace(lock)  # so that the lock is never missing
            return "cannot renew" in caplog.text

        wait_until(is_noticed)
        back = threading.Timer(0.2, lambda: aside.replace(lock))
        back.start()
        store.commit({})
        back.join()
        before = renewals(tmp_path / "run")
        wait_until(lambda: renewals(tmp_path / "run") > before)
    assert not lock.exists()


def test_a_commit_waits_for_a_lock_that_cannot_be_read(tmp_path, quick, disk):
    with open_run_directory(str(tmp_path / "run")) as store:
        disk.failing["read"] = 4
        store.commit({})
    assert disk.failed["read"] == 4
    assert (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize("how", ["error", "half a file"])
def test_a_lock_that_stays_unreadable_is_called_that_and_not_deleted(tmp_path, quick, disk, monkeypatch, how):
    monkeypatch.setattr(locking, "RENEWED", 100.0)
    reason = "Input/output error" if how == "error" else "its content is not that of a lock"
    with (
        pytest.raises(
            SparkDbpError, match=f"cannot be read, so it is not known whose it is: {reason}"
        ) as caught,
        open_run_directory(str(tmp_path / "run")) as store,
    ):
        if how == "error":
            disk.failing["read"] = float("inf")
        else:
            (tmp_path / "run/lock.json").write_text("{")
        store.commit({})
    assert not isinstance(caught.value, ConflictError)  # no other run is known of
    assert not (tmp_path / "run/run.json").exists()
    assert (tmp_path / "run/lock.json").exists()  # whose it is was not known at the end either


def test_the_release_tries_again(tmp_path, disk, monkeypatch):
    with open_run_directory(str(tmp_path / "run")):
        disk.failing["read"] = 1
    assert disk.failed["read"] == 1
    assert not (tmp_path / "run").exists()


def test_a_lock_that_cannot_be_read_is_not_called_another_runs(tmp_path, quick, disk):
    """Neither when it is looked at first, nor while it is watched, nor when it is taken over."""
    write_lock(tmp_path / "run", host="elsewhere")
    disk.failing["read"] = 2
    with open_run_directory(str(tmp_path / "run")):
        pass
    write_lock(tmp_path / "run", host="elsewhere")
    disk.failing["read"] = float("inf")
    with (
        pytest.raises(SparkDbpError, match="cannot be read") as caught,
        open_run_directory(str(tmp_path / "run")),
    ):
        pass
    assert not isinstance(caught.value, ConflictError)


def test_the_time_in_which_a_lock_cannot_be_read_is_not_watched(tmp_path, quick, disk, monkeypatch):
    """The owner cannot write to that disk either; it renews its lock when the disk is back."""
    monkeypatch.setattr(locking, "PATIENCE", 10.0)
    write_lock(tmp_path / "run", host="elsewhere", pid=7)
    watching = threading.Event()
    monkeypatch.setattr(locking.log, "info", lambda text, *_: watching.set() if "watching" in text else None)

    def outage():
        watching.wait(10)
        disk.failing["read"] = float("inf")
        time.sleep(0.8)  # longer than a lock is watched
        disk.failing["read"] = 0
        time.sleep(0.2)
        write_lock(tmp_path / "run", host="elsewhere", pid=7, renewals=1)

    owner = threading.Thread(target=outage)
    owner.start()
    with pytest.raises(ConflictError, match="process 7"), open_run_directory(str(tmp_path / "run")):
        pass
    owner.join()
    assert disk.failed["read"] > 0


def test_a_full_disk_leaves_no_half_lock(tmp_path, monkeypatch):
    class Full:
        """A stream that fails when it is flushed."""

        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, content):
            self.stream.write(content[:3])

        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original = locking.Path.open

    def open_full(path, mode="r", **options):
        stream = original(path, mode, **options)
        return Full(stream) if mode == "xb" else stream

    monkeypatch.setattr(locking.Path, "open", open_full)
    with (
        pytest.raises(ConfigError, match="No space left on device"),
        open_run_directory(str(tmp_path / "run")),
    ):
        pass
    assert not (tmp_path / "run/lock.json").exists()


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
