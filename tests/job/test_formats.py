"""Runs on embeddings as other programs write them, and the same answer as from a table of the same rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import VIEW, config_of, rows_of, write_table
from made_formats import EMBEDDINGS, FORMATS, KEYS, N, write_clip_retrieval, write_datacomp, write_matrix

from spark_dbp import RunConfig, read_embeddings, run, verify
from spark_dbp.errors import InputError
from spark_dbp.explore.doctor import Wishes, examine


@pytest.fixture(scope="module")
def expected(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    source = write_table(folder / "in", KEYS, EMBEDDINGS.astype(np.float32))
    return run(RunConfig.from_dict(config_of(source, folder / "run")), spark).document["digests"]


@pytest.mark.parametrize("name", ["datacomp", pytest.param("clip_retrieval", marks=pytest.mark.slow), "npy"])
@pytest.mark.parametrize("engine", ["arrow", pytest.param("sql", marks=pytest.mark.slow)])
def test_the_answer_is_that_of_a_table(spark, tmp_path, expected, name, engine):
    given = FORMATS[name](tmp_path / "in")
    values = config_of("unused", tmp_path / "run", input=given, engine=engine)
    done = run(RunConfig.from_dict(values), spark)
    assert done.document["digests"]["keep_list"] == expected["keep_list"]
    assert done.document["input"]["rows"] == N
    verify(done, spark)
    again = run(RunConfig.from_dict(values), spark)
    assert again.document["reused_stages"] == list(done.document["stages"])


@pytest.mark.slow
def test_columns_of_the_metadata_serve_filter_dedup_and_score(spark, tmp_path):
    values = config_of(
        "unused",
        tmp_path / "run",
        input={**write_datacomp(tmp_path / "in"), "filter": "size >= 20"},
        dedup={"exact": {"columns": [{"sql": "size DIV 2"}]}},
        score_filter={"column": "size", "at_least": 60},
    )
    done = run(RunConfig.from_dict(values), spark)
    dropped = done.document["accounting"]["dropped"]
    assert (dropped["input.filter"], dropped["exact duplicates"], dropped["score_filter"]) == (20, 140, 20)
    verify(done, spark)


def test_as_a_dataframe(spark, tmp_path):
    write_datacomp(tmp_path / "in")
    frame = read_embeddings(spark, "datacomp", str(tmp_path / "in"))
    assert frame.columns == ["embedding", "uid", "text", "size"]
    assert rows_of(frame.select("uid", "size")) == sorted(zip(KEYS, range(N), strict=True))


def test_files_that_change_after_they_were_looked_at(spark, tmp_path):
    write_matrix(tmp_path / "in")
    options = {"keys": str(tmp_path / "in" / "keys.txt")}
    frame = read_embeddings(spark, "npy", str(tmp_path / "in" / "x.npy"), **options)
    np.save(tmp_path / "in" / "x.npy", EMBEDDINGS[:100])
    with pytest.raises(Exception, match="spark-dbp refuses"):
        frame.collect()
    values = config_of("unused", tmp_path / "run", input=write_matrix(tmp_path / "other"))
    (tmp_path / "other" / "keys.txt").write_text("one\ntwo")
    with pytest.raises(InputError, match="cannot be paired"):
        run(RunConfig.from_dict(values), spark)


def test_nulls_alone_in_a_file_and_what_doctor_says(spark, tmp_path):
    given = write_clip_retrieval(tmp_path / "in")
    rows = pq.read_table(tmp_path / "in" / "metadata" / "metadata_1.parquet")
    nulls = rows.set_column(1, "size", pa.nulls(1))
    pq.write_table(nulls, tmp_path / "in" / "metadata" / "metadata_1.parquet")
    frame = read_embeddings(spark, "clip_retrieval", given["path"])
    assert dict(frame.dtypes)["size"] == "bigint"
    assert frame.where("size IS NULL").count() == 1
    wishes = Wishes(output=str(tmp_path / "run"), format="clip_retrieval", paths=[given["path"]])
    said = {finding.about: finding for finding in examine(lambda: spark, wishes)}
    assert said["input"].status == "ok", said["input"]


@pytest.mark.slow
def test_a_store_that_only_spark_opens(spark, tmp_path, viewed, expected):
    write_datacomp(viewed / "pool")
    given = {"format": "datacomp", "path": f"{VIEW}/pool"}
    values = config_of("unused", f"{VIEW}/run-{tmp_path.name}", input=given)
    done = run(RunConfig.from_dict(values), spark)
    assert done.document["engine"]["name"] == "sql"
    assert done.document["digests"]["keep_list"] == expected["keep_list"]
    verify(done, spark)
