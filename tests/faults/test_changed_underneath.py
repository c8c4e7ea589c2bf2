"""Input that changes while it is read, tables that are planted or perturbed: refused, or of no effect."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, builds, open_run, run
from spark_dbp.errors import ConflictError, InputError, SparkDbpError
from spark_dbp.explore.verify import verify
from spark_dbp.job import Job
from spark_dbp.stages import kmeans

N = 400
KEYS, EMBEDDINGS = make_keys(N), make_embeddings(N, 8, 5)


@pytest.fixture
def source(tmp_path) -> Path:
    return write_table(tmp_path / "in", KEYS, EMBEDDINGS, n_files=3)


def configured(source, tmp_path, **sections) -> RunConfig:
    sections.setdefault("cluster", {"n_clusters": 5, "n_iter": 4})
    return RunConfig.from_dict(config_of(source, tmp_path / "run", **sections))


def replaced(source):
    """Other values under the same name, as many."""
    write_table(source.parent / "other", KEYS, EMBEDDINGS[::-1].copy(), n_files=3)
    (source.parent / "other/00001.parquet").replace(source / "00001.parquet")


def added(source):
    pq.write_table(pq.read_table(source / "00000.parquet"), source / "more.parquet")


def removed(source):
    (source / "00002.parquet").unlink(missing_ok=True)


def truncated(source):
    content = (source / "00001.parquet").read_bytes()
    (source / "00001.parquet").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("change", "when"),
    [
        pytest.param(replaced, "before", marks=pytest.mark.slow),
        (truncated, "before"),
        (added, "after"),
        *(
            pytest.param(change, when, marks=pytest.mark.long)
            for change, when in [
                (added, "before"), (removed, "before"), (replaced, "after"), (removed, "after"), (truncated, "after"),
            ]
        ),
    ],
)  # fmt: skip
def test_input_that_changes_while_it_is_read(spark, source, tmp_path, monkeypatch, change, when):
    """After the snapshot, before or after the rows were read: nothing is committed, the same command mends it."""
    original = Job.write_table

    def write_table(job, table, rows, **more):
        if table == "samples" and when == "before":
            change(source)
        written = original(job, table, rows, **more)
        if table == "samples" and when == "after":
            change(source)
        return written

    monkeypatch.setattr(Job, "write_table", write_table)
    with pytest.raises(InputError) as caught:
        run(configured(source, tmp_path), spark)
    message = str(caught.value)
    assert "to mend it" in message
    assert str(source) in message
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    if change in (replaced, removed):
        assert run(configured(source, tmp_path), spark).document["rows"]["keep_list"] > 0
    else:  # a doubled file and half a file are refused for what they are
        with pytest.raises(InputError):
            run(configured(source, tmp_path), spark)


@pytest.mark.slow
def test_nothing_goes_back_to_the_input_after_ingest(spark, source, tmp_path, monkeypatch):
    """What deduplication looks at travels in the samples: the input may change, or be gone, by then."""
    original = builds.exact_dedup
    monkeypatch.setattr(builds, "exact_dedup", lambda *a, **k: (shutil.rmtree(source), original(*a, **k))[1])
    settings = {"exact": {"columns": ["embedding"]}, "semantic": {"eps": 0.1, "n_clusters": 2}}
    done = run(configured(source, tmp_path, dedup=settings), spark)
    assert not source.exists()
    assert done.document["rows"]["duplicates"] > 0
    assert done.document["accounting"]["rows_in"] == len(KEYS)


@pytest.mark.slow
def test_planted_files_and_leftovers(spark, source, tmp_path):
    first = run(configured(source, tmp_path), spark)
    table = Path(first.table_path("assignments"))
    part = next(table.glob("*.parquet"))
    for leftover in ("_temporary/0/task_1", "_draft-1234"):
        (table / leftover).mkdir(parents=True)
        shutil.copy(part, table / leftover / "part-00000.parquet")
    again = configured(source, tmp_path, prune={"keep_ratio": 0.5})
    second = run(again, spark)
    assert "assign" in second.document["reused_stages"]  # what Spark does not read does no harm
    expected = second.document["digests"]["keep_list"]
    shutil.copy(part, table / "part-99999.parquet")  # what Spark would read is seen
    third = run(again, spark)
    assert third.document["tables"]["assignments"] != second.document["tables"]["assignments"]
    assert "assign" not in third.document["reused_stages"]
    assert "select" in third.document["reused_stages"]  # the same assignments came out
    assert third.document["digests"]["keep_list"] == expected
    assert len(verify(third, spark)) == 9


def test_files_planted_while_a_stage_writes(spark, source, tmp_path, monkeypatch):
    original = kmeans.plan_assignment

    def assignment(*arguments):
        made = original(*arguments)
        write = made.write_parquet

        def write_and_plant(path, *more):
            written = write(path, *more)
            shutil.copy(next(Path(path).glob("*.parquet")), Path(path) / "part-99999.parquet")
            return written

        object.__setattr__(made, "write_parquet", write_and_plant)
        return made

    monkeypatch.setattr(kmeans, "plan_assignment", assignment)
    with pytest.raises(SparkDbpError, match="table assignments: file 'part-99999"):
        run(configured(source, tmp_path), spark)
    assert not (tmp_path / "run/tables/assignments").exists()


def test_keys_that_were_swapped_while_a_stage_writes(spark, source, tmp_path, monkeypatch):
    """As many rows, but one key twice and another not at all: the keys' digest tells."""
    original = kmeans.plan_assignment

    def assignment(*arguments):
        made = original(*arguments)
        function = made.function

        def doubled(batches):
            for batch in function(batches):
                keys = batch.column("key").to_pylist()
                keys[0] = keys[-1]
                yield batch.set_column(batch.schema.get_field_index("key"), "key", pa.array(keys))

        object.__setattr__(made, "function", doubled)
        return made

    monkeypatch.setattr(kmeans, "plan_assignment", assignment)
    with pytest.raises(SparkDbpError, match="table assignments has digest of keys"):
        run(configured(source, tmp_path), spark)


@pytest.mark.slow
def test_a_computation_that_gives_other_scores_each_time(spark, tmp_path):
    """Embeddings from a UDF that never says the same twice, as those of a model on a GPU may: they are computed
    once, written, and read from then on, so that every table follows from what was written."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType, FloatType

    write_table(tmp_path / "few", KEYS[:100], EMBEDDINGS[:100])
    counter = tmp_path / "evaluations"
    counter.mkdir()

    @F.udf(ArrayType(FloatType()))
    def perturbed(embedding):
        number = len(list(counter.iterdir()))
        (counter / str(number)).touch()
        return [value + 0.01 * (number % 7) for value in embedding]

    frame = spark.read.parquet(str(tmp_path / "few")).withColumn(
        "embedding", perturbed.asNondeterministic()("embedding")
    )
    frame.createOrReplaceTempView("perturbed_view")
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 5, "n_iter": 4})
    config["input"] = {"table": "perturbed_view"}
    done = run(RunConfig.from_dict(config), spark)
    assert len(list(counter.iterdir())) > 100  # once to know the input again, once for good
    samples = rows_of(done.table("samples", spark).select("key", "vector"))
    vectors = np.array([np.frombuffer(vector, np.float32) for _, vector in samples])
    answer = oracle.run([key for key, _ in samples], vectors, n_clusters=5, n_iter=4, keep_ratio=0.3)
    assert rows_of(done.keep_list(spark)) == answer.keep_list
    assert len(verify(done, spark)) == 9
    # Such an input is never known again: it is read anew, and all that follows is made of what was read.
    shutil.rmtree(counter)
    counter.mkdir()
    (counter / "0").touch()
    again = run(RunConfig.from_dict(config), spark)
    assert again.document["reused_stages"] == []
    assert len(verify(again, spark)) == 9


@pytest.mark.parametrize("predicate", [pytest.param(None, marks=pytest.mark.long), "true"])
def test_a_view_that_gives_other_numbers_of_rows(spark, source, tmp_path, predicate):
    """More rows the second time: with a filter too, it cannot let through more than there are."""
    from pyspark.sql import functions as F

    seen = tmp_path / "seen"

    @F.udf("int")
    def times(key):
        first = not seen.exists()
        if key == KEYS[-1]:
            seen.touch()
        return 1 if first else 2

    frame = spark.read.parquet(str(source)).coalesce(1)
    twice = F.explode(F.sequence(F.lit(1), times.asNondeterministic()("key")))
    frame.select("key", "embedding", twice.alias("copy")).createOrReplaceTempView("growing_view")
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 5})
    config["input"] = {"table": "growing_view", "filter": predicate}
    with pytest.raises(InputError, match=r"had \d+ rows when it was counted and 800 when it was read"):
        run(RunConfig.from_dict(config), spark)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_view_is_known_again_by_its_rows(spark, source, tmp_path):
    """A view does not tell its files: what it gives is compared, not how many rows."""
    spark.read.parquet(str(source)).createOrReplaceTempView("known_view")
    config = config_of("", tmp_path / "run", cluster={"n_clusters": 5, "n_iter": 4})
    config["input"] = {"table": "known_view"}
    first = run(RunConfig.from_dict(config), spark)
    assert run(RunConfig.from_dict(config), spark).document["reused_stages"][0] == "ingest"
    replaced(source)
    spark.read.parquet(str(source)).createOrReplaceTempView("known_view")
    third = run(RunConfig.from_dict(config), spark)
    assert third.document["reused_stages"] == []
    assert third.document["digests"]["keep_list"] != first.document["digests"]["keep_list"]


def test_another_run_takes_the_directory_over(spark, source, tmp_path, monkeypatch):
    """The lock is gone in the middle of a stage: that stage and all further ones are not committed."""
    original = Job.write_table

    def write_table(job, table, rows, **more):
        if table == "assignments":
            (tmp_path / "run/lock.json").unlink()
        return original(job, table, rows, **more)

    monkeypatch.setattr(Job, "write_table", write_table)
    with pytest.raises(ConflictError, match="no longer this run's"):
        run(configured(source, tmp_path), spark)
    assert sorted(p.stem for p in (tmp_path / "run/stages").iterdir()) == ["cluster", "ingest"]
    monkeypatch.undo()
    assert run(configured(source, tmp_path), spark).document["reused_stages"] == ["ingest", "cluster"]


@pytest.mark.slow
def test_fresh(spark, source, tmp_path):
    first = run(configured(source, tmp_path), spark)
    second = run(configured(source, tmp_path), spark, fresh=True)
    assert second.document["reused_stages"] == []
    assert second.document["digests"] == first.document["digests"]
    assert set(second.document["tables"].values()).isdisjoint(first.document["tables"].values())
    assert open_run(tmp_path / "run").document["run_id"] == second.document["run_id"]
