"""The driver is killed at every stage boundary and in the middle of writes; the same command goes on."""

from __future__ import annotations

import pytest

from faults.conftest import KILLED, Job
from spark_dbp import open_run
from spark_dbp.explore.verify import verify
from spark_dbp.lake.cleaning import clean

PLAIN = ["ingest", "cluster", "assign", "cluster_stats", "quota", "select", "keep_trie"]
DEDUP = [
    "exact_dedup", "exact_survivors", "minhash_dedup", "minhash_survivors", "semantic_clusters", "semantic_dedup",
    "survivors",
]  # fmt: skip
WITHOUT_WORKERS = {"cluster", "quota", "exact_dedup", "exact_survivors", "minhash_survivors", "survivors"}


def every_point(stages):
    for stage in stages:
        if stage not in WITHOUT_WORKERS:
            yield stage, "working"
        yield stage, "written"
        yield stage, "marked"
    yield "run.json", "written"


QUICK = [("select", "written")]


@pytest.mark.parametrize(
    ("points", "dedup"),
    [
        pytest.param(QUICK, False, id="some", marks=pytest.mark.slow),
        pytest.param(list(every_point(PLAIN)), False, id="every", marks=pytest.mark.long),
        pytest.param(list(every_point(["ingest", *DEDUP])), True, id="dedup", marks=pytest.mark.long),
    ],
)
def test_killed_again_and_again(spark, source, digest_of, tmp_path, points, dedup):
    """One directory, killed at one point after the other: every start goes on where the last one stopped."""
    job = Job(tmp_path, source, dedup)
    for stage, when in points:
        before = job.marks()
        done = job.start(stage, when, "kill driver")
        assert done.returncode == KILLED, (stage, when, done.stderr[-2000:])
        assert not job.has_committed()
        assert set(before) <= set(job.marks())
        assert (stage in job.marks()) == (when == "marked" or stage in before)
        assert (job.out / "lock.json").exists()  # nobody was left to delete it
    finished = job.marks()
    done = job.start()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "took over the lock of a run that died" in done.stderr
    assert done.stderr.count("reused from the earlier run") == len(finished)
    assert job.digest() == digest_of(dedup)
    assert sorted(open_run(job.out).document["reused_stages"]) == finished
    assert not (job.out / "lock.json").exists()
    # What the killed runs left is no part of the run, and can be cleaned away.
    debris = clean(str(job.out))
    assert debris
    assert len(verify(open_run(job.out), spark)) == 9
    assert not list(job.out.glob(".*"))
    attempts = [attempt for table in (job.out / "tables").iterdir() for attempt in table.iterdir()]
    assert len(attempts) == len(open_run(job.out).document["tables"])
