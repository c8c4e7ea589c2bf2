"""Tables made of what other programs wrote: the same rows, whoever reads the files and writes the table."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import VIEW, config_of
from made_formats import EMBEDDINGS, FORMATS, KEYS, N, write_clip_retrieval, write_datacomp

from spark_dbp import RunConfig, import_embeddings, read_embeddings, run
from spark_dbp.cli import main
from spark_dbp.engine.compat import collect_arrow
from spark_dbp.engine.whole_files import bring_groups, iter_groups
from spark_dbp.errors import ConfigError, ConflictError, InputError
from spark_dbp.exchange import import_embeddings as module
from spark_dbp.io.formats import dataset


def read_back(path) -> pa.Table:
    return pq.read_table(path).sort_by("key")


def expect_rows(table: pa.Table) -> None:
    order = np.argsort(KEYS)
    assert table.column("key").to_pylist() == [KEYS[i] for i in order]
    found = np.array(table.column("embedding").to_pylist(), np.float32)
    assert (found == EMBEDDINGS[order].astype(np.float32)).all()
    if "size" in table.column_names:
        assert table.column("size").to_pylist() == order.tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_has_the_rows_of_the_files(spark, tmp_path, name):
    given = FORMATS[name](tmp_path / "in")
    done = import_embeddings(
        spark, given["format"], given["path"], str(tmp_path / "out"), **given.get("options", {})
    )
    assert done.rows == N
    table = read_back(tmp_path / "out")
    assert table.column_names[:2] == ["key", "embedding"]
    expect_rows(table)
    manifest = json.loads((tmp_path / "out" / "_import.json").read_text())
    assert (manifest["rows"], manifest["format"]) == (N, given["format"])
    assert spark.read.parquet(str(tmp_path / "out")).count() == N


@pytest.mark.parametrize("reads", ["workers", "spark"])
@pytest.mark.parametrize("writes", ["workers", "spark"])
def test_whoever_reaches_what(spark, tmp_path, monkeypatch, reads, writes):
    given = write_datacomp(tmp_path / "in [v1] é%20")
    if reads == "spark":
        monkeypatch.setattr(dataset, "can_workers_read", lambda *_: False)
    if writes == "spark":
        monkeypatch.setattr(module, "find_problem_of_workers", lambda *_: "they do not reach it")
    out = tmp_path / "out {a} é%20"
    import_embeddings(spark, "datacomp", given["path"], str(out), key="uid")
    expect_rows(read_back(out))


def test_a_store_that_only_spark_opens(spark, tmp_path, viewed):
    write_clip_retrieval(viewed / "clip a%20b")
    import_embeddings(spark, "clip_retrieval", f"{VIEW}/clip a%20b", f"{VIEW}/table")
    expect_rows(read_back(viewed / "table"))
    found = read_embeddings(spark, "clip_retrieval", f"{VIEW}/clip a%20b", columns=["image_path"])
    assert sorted(row.image_path for row in found.collect()) == sorted(KEYS)


def test_columns_of_many_types(spark, tmp_path):
    write_clip_retrieval(tmp_path / "in")
    for path in sorted((tmp_path / "in" / "metadata").iterdir()):
        rows = pq.read_table(path)
        n = rows.num_rows
        more = {
            "when": pa.array([datetime.datetime(2020, 1, 1)] * n, pa.timestamp("us")),
            "at": pa.array([datetime.datetime(2020, 1, 1)] * n, pa.timestamp("ns", "UTC")),
            "tags": pa.array([["a", None]] * n, pa.list_(pa.string())),
            "box": pa.array([{"x": 1, "to": {"y": 2.5}}] * n),
            "boxes": pa.array([[[0.1, 0.2]]] * n),
            "price": pa.array([None] * n, pa.decimal128(12, 3)),
            "kind": pa.array(["one"] * n).dictionary_encode(),
            "a.b `c`": list(range(n)),
        }
        for name, values in more.items():
            rows = rows.append_column(name, values if isinstance(values, pa.Array) else pa.array(values))
        pq.write_table(rows, path)
    out = str(tmp_path / "out")
    done = import_embeddings(spark, "clip_retrieval", str(tmp_path / "in"), out)
    assert done.columns["box"] == "struct<x:bigint,to:struct<y:double>>"
    row = spark.read.parquet(out).where("key = '" + KEYS[7] + "'").first()
    assert (row["tags"], row["box"]["to"]["y"], row["boxes"]) == (["a", None], 2.5, [[0.1, 0.2]])
    assert (row["kind"], row["a.b `c`"], row["size"], row["price"]) == ("one", 7, 7, None)
    assert row["when"] == datetime.datetime(2020, 1, 1)
    expect_rows(read_back(out).select(["key", "embedding", "size"]))


def test_files_that_spark_brings_are_whole(spark, tmp_path):
    """Pieces, one of them shorter; an empty file; groups of several files."""
    contents = {"a": b"x" * 40_000 + b"y", "b b": b"z", "c%41": bytes(range(256)) * 64, "d": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    groups = [[str(tmp_path / "a"), str(tmp_path / "b b")], [str(tmp_path / "c%41"), str(tmp_path / "d")]]
    batches = collect_arrow(bring_groups(spark, groups)).to_batches()
    found = {number: {p: bytes(c) for p, c in one.items()} for number, one in iter_groups(iter(batches))}
    expected = [
        {path: content for path in group if (content := contents[path.rpartition("/")[2]])}
        for group in groups
    ]
    assert found == dict(enumerate(expected))


def test_what_spark_alone_cannot_bring_is_refused(spark, tmp_path, monkeypatch):
    given = write_datacomp(tmp_path / "in")
    monkeypatch.setattr(dataset, "can_workers_read", lambda *_: False)
    monkeypatch.setattr(dataset, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="Spark, which alone reaches them"):
        import_embeddings(spark, "datacomp", given["path"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_changes_meanwhile_leaves_nothing(spark, tmp_path, monkeypatch):
    given = write_datacomp(tmp_path / "in")
    real = module.find_problem_of_workers

    def change(*arguments):
        (tmp_path / "in" / "small" / "2.npz").write_bytes(b"PK")
        return real(*arguments)

    monkeypatch.setattr(module, "find_problem_of_workers", change)
    with pytest.raises(InputError, match=r"2\.npz"):
        import_embeddings(spark, "datacomp", given["path"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_two_at_a_time_are_a_conflict_and_delete_nothing(spark, tmp_path, monkeypatch):
    given = write_datacomp(tmp_path / "in")
    out = str(tmp_path / "out")
    real, seen = module.open_dataset, []

    def begin_another(*arguments):
        monkeypatch.setattr(module, "open_dataset", real)
        with pytest.raises(ConflictError, match="is in use by"):
            import_embeddings(spark, "datacomp", given["path"], out)
        seen.append(out)
        return real(*arguments)

    monkeypatch.setattr(module, "open_dataset", begin_another)
    import_embeddings(spark, "datacomp", given["path"], out)
    assert seen
    expect_rows(read_back(out))


def test_what_a_kill_leaves_is_no_input_and_is_replaced(spark, tmp_path):
    given = write_datacomp(tmp_path / "in")
    out = tmp_path / "out"
    import_embeddings(spark, "datacomp", given["path"], str(out))
    mark = out / "_import.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "complete": False}))
    next(out.glob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="a part of an import that was cut off"):
        run(RunConfig.from_dict(config_of(out, tmp_path / "run")), spark)
    (out / "mine").write_text("mine")
    with pytest.raises(ConflictError, match="mine is there"):
        import_embeddings(spark, "datacomp", given["path"], str(out))
    (out / "mine").unlink()
    import_embeddings(spark, "datacomp", given["path"], str(out))
    expect_rows(read_back(out))
    assert json.loads(mark.read_text())["complete"]


def test_secrets_are_not_written(spark, tmp_path):
    given = write_datacomp(tmp_path / "in?sig=abcdef12345")
    import_embeddings(spark, "datacomp", given["path"], str(tmp_path / "out"))
    text = (tmp_path / "out" / "_import.json").read_text()
    assert "(redacted)" in text
    assert "abcdef12345" not in text


@pytest.mark.parametrize("name", ["Key", "key", "EMBEDDING", "Size"])
def test_columns_of_one_name_are_refused_before_anything_is_written(spark, tmp_path, name):
    given = write_clip_retrieval(tmp_path / "in")
    for path in (tmp_path / "in" / "metadata").iterdir():
        rows = pq.read_table(path)
        pq.write_table(rows.append_column(name, rows.column("size")), path)
    with pytest.raises(ConfigError, match=f"and the column '{name}' would both be named"):
        import_embeddings(spark, "clip_retrieval", given["path"], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_left_alone(spark, tmp_path):
    given = write_datacomp(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ConflictError, match="mine is there"):
        import_embeddings(spark, "datacomp", given["path"], str(tmp_path / "out"))
    assert (tmp_path / "out" / "mine").read_text() == "mine"


def test_the_command(spark, tmp_path, capsys):
    given = write_datacomp(tmp_path / "in")
    out = tmp_path / "out"
    command = ["import", "datacomp", given["path"], "--out", str(out), "--json", "--key", "uid"]
    assert main([*command, "--set", "input.options.columns=[uid, size]"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["columns"] == {"key": "string", "embedding": "array<float>", "size": "bigint"}
    assert main(command) == 4


BAD = {
    "a setting that is not taken": (["--set", "cluster.seed=1"], 2, "takes no settings but input.options"),
    "an unknown option": (["--set", "input.options.arrays=x"], 2, "array"),
    "a column that is not there": (["--key", "id"], 2, "there is no column 'id'"),
    "an array that is not there": (["--set", "input.options.array=l15_img"], 3, "l15_img"),
    "an unknown format": (["parquet"], 2, "there is no format"),
    "a folder that is not there": (["nowhere"], 3, "there is no folder"),
    "no place": (["--out", ""], 2, "--out is empty"),
    "a web server": (["--out", "http://host/x"], 2, "nothing can be written to a web server"),
    "a file": (["--out", __file__], 2, "is a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_commands(spark, tmp_path, capsys, case):
    arguments, code, words = BAD[case]
    given = write_datacomp(tmp_path / "in")
    form = "parquet" if arguments == ["parquet"] else "datacomp"
    source = str(tmp_path / "nowhere") if arguments == ["nowhere"] else given["path"]
    more = arguments if arguments[0].startswith("--") else []
    assert main(["import", form, source, "--out", str(tmp_path / "out"), *more]) == code
    message = capsys.readouterr().err
    assert words in message
    assert "to mend it" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
