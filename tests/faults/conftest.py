"""What the fault tests share: an input, the answer without faults, and a way to start a job with one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, write_table

from spark_dbp import RunConfig, open_run, run

N = 1200
FAULTY_JOB = str(Path(__file__).parent / "faulty_job.py")
# Four attempts a task, as on a cluster: a local session gives up at the first failure.
SPARK = {
    "spark.master": "local[2,4]",
    "spark.sql.shuffle.partitions": 3,
    "spark.driver.memory": "1g",
    "spark.sql.adaptive.enabled": False,
}


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    embeddings = make_embeddings(N, 8, 5)
    embeddings[100:120] = embeddings[80:100]
    text = pa.array([sha256(bytes([i % 256, i // 256])).hexdigest() for i in [*range(N - 1), 4]])
    return write_table(
        tmp_path_factory.mktemp("input") / "in", make_keys(N), embeddings, n_files=4, text=text
    )


def config(source: Path, out: Path, dedup: bool = False, **spark: object) -> dict:
    more: dict = {"spark": {**SPARK, **spark}, "cluster": {"n_clusters": 6, "n_iter": 4}}
    if dedup:
        semantic = {"eps": 0.001, "n_clusters": 3}
        more["dedup"] = {"exact": {"columns": ["text"]}, "minhash": {"column": "text"}, "semantic": semantic}
    return config_of(source, out, **more)


@pytest.fixture(scope="session")
def digest_of(spark, source, tmp_path_factory):
    """Digest of the keep list without faults, with or without deduplication."""

    @cache
    def undisturbed(dedup: bool) -> str:
        values = config(source, tmp_path_factory.mktemp("undisturbed") / "run", dedup)
        del values["spark"]
        return run(RunConfig.from_dict(values), spark).document["digests"]["keep_list"]

    return undisturbed


class Job:
    """A job in a folder of its own, to be started with faults and without."""

    def __init__(self, folder: Path, source: Path, dedup: bool = False, **spark: object) -> None:
        self.folder, self.out = folder, folder / "run"
        self.notes = folder / "notes"
        self.notes.mkdir()
        (folder / "conf.yaml").write_text(yaml.safe_dump(config(source, self.out, dedup, **spark)))
        self.n_started = 0

    def command(
        self, stage: str = "none", when: str = "working", what: str = "raise", times: int = 1
    ) -> list:
        """The command of a job with a fault; each start takes its own notes."""
        self.n_started += 1
        notes = self.notes / str(self.n_started)
        notes.mkdir()
        fault = {"stage": stage, "when": when, "what": what, "times": times, "notes": str(notes)}
        return [sys.executable, FAULTY_JOB, json.dumps(fault), "run", str(self.folder / "conf.yaml")]

    def start(self, *fault: str, times: int = 1) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*fault, times=times), capture_output=True, text=True, timeout=300, cwd=self.folder
        )

    def popen(self, *fault: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*fault), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder
        )

    @property
    def faults(self) -> list[str]:
        """Word that the faults of the last start left: they did strike."""
        return sorted(note.name for note in (self.notes / str(self.n_started)).iterdir())

    def has_committed(self) -> bool:
        return (self.out / "run.json").exists()

    def marks(self) -> list[str]:
        return sorted(mark.stem for mark in (self.out / "stages").glob("[a-z]*.json"))

    def digest(self) -> str:
        return open_run(self.out).document["digests"]["keep_list"]


@pytest.fixture
def job(tmp_path, source) -> Job:
    return Job(tmp_path, source)


KILLED = -signal.SIGKILL
