"""Sessions that refuse settings, as Databricks' serverless compute does: a run goes on where that is safe."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys, write_table
from pyspark.errors import AnalysisException

from spark_dbp import RunConfig, run
from spark_dbp.engine import session as sessions
from spark_dbp.engine.catalog import refresh_table
from spark_dbp.engine.compat import count_shuffle_partitions, open_reader, read_parquet_codec, read_setting
from spark_dbp.engine.session import bound_batches, describe_jobs, guard_session
from spark_dbp.errors import ConfigError, InputError

CORRUPT, TIMES = "spark.sql.files.ignoreCorruptFiles", "spark.sql.parquet.outputTimestampType"
BATCH, ZONE = "spark.sql.execution.arrow.maxRecordsPerBatch", "spark.sql.session.timeZone"


def refusal(name: str) -> AnalysisException:
    """As Connect gives it on serverless compute, also for a default that the caller names."""
    return AnalysisException(f"[CONFIG_NOT_AVAILABLE] Configuration {name} is not available. SQLSTATE: 42K0I")


class RefusingConf:
    """The settings of a session, of which some cannot be set, and some of these not even be read."""

    def __init__(self, conf, unset=(), hidden=(), error=refusal) -> None:
        self._conf, self._unset, self._hidden, self._error = conf, unset, hidden, error

    def set(self, name, value):
        if self._unset == "all" or name in self._unset:
            raise self._error(name)
        self._conf.set(name, value)

    def unset(self, name):
        assert self._unset != "all" and name not in self._unset, "it was never set"
        self._conf.unset(name)

    def get(self, name, *default):
        if self._hidden == "all" or name in self._hidden:
            raise self._error(name)
        return self._conf.get(name, *default)


class Refusing:
    """A session with `RefusingConf`, and all else of the real one."""

    def __init__(self, session, unset=(), hidden=(), error=refusal) -> None:
        self._session, self.conf = session, RefusingConf(session.conf, unset, hidden, error)

    def __getattr__(self, name):
        return getattr(self._session, name)


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(sessions, "_told", set())


@pytest.fixture
def skipping(spark):
    """A session that is told to skip damaged files."""
    spark.conf.set(CORRUPT, "true")
    yield spark
    spark.conf.unset(CORRUPT)


@pytest.mark.slow
def test_a_run_where_nothing_can_be_set_or_read(spark, tmp_path, caplog):
    """As on serverless compute: the same keep list, and the log says once what was refused and why it goes on."""
    source = write_table(tmp_path / "in", make_keys(400), make_embeddings(400, 8, 4), n_files=3)
    usual = run(RunConfig.from_dict(config_of(source, tmp_path / "usual")), spark)
    with caplog.at_level(logging.WARNING, "spark_dbp"):
        refused = run(RunConfig.from_dict(config_of(source, tmp_path / "run")), Refusing(spark, "all", "all"))
    assert refused.document["digests"] == usual.document["digests"]
    told = [record.getMessage() for record in caplog.records if "cannot be set" in record.getMessage()]
    assert len(told) == len(sessions._GUARDED_CONF)
    assert f"{CORRUPT} cannot be set in this session (Configuration {CORRUPT} is not available." in told[0]
    assert "going on: every read of this job says so itself" in told[0]


@pytest.mark.parametrize("how", ["set", "hidden"])
def test_a_session_that_already_has_the_value(spark, how):
    hidden = [CORRUPT] if how == "hidden" else []
    with guard_session(Refusing(spark, [CORRUPT], hidden)):
        assert spark.conf.get(TIMES) == "TIMESTAMP_MICROS"
    assert spark.conf.get(TIMES) == "INT96"


@pytest.mark.parametrize(
    "error",
    [
        refusal,
        lambda name: type("Py4JJavaError", (Exception,), {"__module__": "py4j.protocol"})(f"no {name}"),
    ],
    ids=["connect", "classic"],
)
def test_a_session_that_skips_damaged_files_is_refused(skipping, error):
    """By name; what was set before it is given back."""
    skipping.conf.unset(TIMES)
    with (
        pytest.raises(
            ConfigError, match=f"does not let {CORRUPT} be set to false, where it is true"
        ) as refused,
        guard_session(Refusing(skipping, [CORRUPT], error=error)),
    ):
        pass
    assert f"set {CORRUPT}: false where the cluster is configured" in refused.value.mend
    assert skipping.conf.get(TIMES) == "INT96"


def test_another_time_zone_is_refused(spark):
    zone = spark.conf.get(ZONE)
    with guard_session(Refusing(spark, [ZONE]), zone):
        pass
    with (
        pytest.raises(ConfigError, match=f"{ZONE} be set to Asia/Tokyo, where it is {zone}"),
        guard_session(Refusing(spark, [ZONE]), "Asia/Tokyo"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=f"{ZONE} be set to Asia/Tokyo: "),
        guard_session(Refusing(spark, [ZONE], [ZONE]), "Asia/Tokyo"),
    ):
        pass


def test_what_is_for_memory_and_for_people_is_left(spark, caplog):
    with caplog.at_level(logging.WARNING, "spark_dbp"), bound_batches(Refusing(spark, [BATCH]), 1e7):
        assert spark.conf.get(BATCH) == "10000"
    assert "long ones take more memory" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "spark_dbp"), describe_jobs(Refusing(spark, "all", "all"), "words"):
        pass
    assert not caplog.records


def test_a_bug_is_no_refusal(spark):
    with (
        pytest.raises(ZeroDivisionError),
        guard_session(Refusing(spark, [CORRUPT], error=lambda name: ZeroDivisionError(name))),
    ):
        pass


def test_settings_that_cannot_be_read_have_sparks_default(spark):
    hidden = Refusing(spark, hidden="all")
    assert read_setting(hidden, CORRUPT) is None
    assert (count_shuffle_partitions(hidden), read_parquet_codec(hidden)) == (200, "snappy")


@pytest.mark.parametrize("how", ["path", "table"])
def test_the_options_of_a_read_go_before_the_session(skipping, tmp_path, how):
    """What `_GUARDED_CONF` relies on where a session cannot be told."""
    from spark_dbp.engine.spark_errors import translate_errors

    source = tmp_path / "in"
    source.mkdir()
    pq.write_table(pa.table({"key": ["a", "b"]}), source / "a.parquet")
    whole = (source / "a.parquet").read_bytes()
    (source / "b.parquet").write_bytes(whole[: len(whole) // 2])
    name = f"damaged_{how}"
    skipping.sql(f"CREATE TABLE {name} (key STRING) USING parquet LOCATION '{source}'")
    try:
        plain, ours = skipping.read, open_reader(skipping)
        if how == "table":
            frames = [plain.table(name)]
            refresh_table(
                skipping, name
            )  # as `io.sources` does before it reads: Spark 3.5 remembers the options
            frames.append(ours.table(name))
        else:
            frames = (
                plain.schema("key STRING").parquet(str(source)),
                ours.schema("key STRING").parquet(str(source)),
            )
        assert len(frames[0].collect()) == 2  # the session does skip the file
        with pytest.raises(InputError, match=r"b\.parquet"), translate_errors("input"):
            frames[1].collect()
    finally:
        skipping.sql(f"DROP TABLE {name}")
