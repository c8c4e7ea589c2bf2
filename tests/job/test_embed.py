"""From texts and images to a keep list: what is embedded, what is taken over, what is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import VIEW, config_of
from PIL import Image
from plain_encoders import Thumbnails, WordCounts, count_notes

from spark_dbp import (
    RunConfig,
    build_embeddings,
    embed_images,
    embed_texts,
    explain,
    export,
    open_run,
    prune_again,
    read_webdataset,
    run,
    verdicts,
    verify,
)
from spark_dbp.embed_parts import embed_parts
from spark_dbp.errors import ConfigError, InputError

WORDS = [
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "ship",
    "tree",
    "small",
    "large",
    "old",
    "new",
    "fast",
    "slow",
    "one",
    "two",
    "three",
]


def make_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(n)]


def write_texts(path: Path, texts: list[str], n_files: int = 3, first: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    keys = [f"t{first + number:05d}" for number in range(len(texts))]
    table = pa.table({"key": keys, "text": texts, "n": pa.array(range(len(texts)), pa.int64())})
    for number, rows in enumerate(np.array_split(np.arange(len(texts)), n_files)):
        pq.write_table(table.take(pa.array(rows)), path / f"{first}-{number}.parquet")
    return path


def text_config(
    source: Path | str, out: Path, notes: Path | None = None, embed: dict | None = None, **sections
):
    options = {"notes": str(notes)} if notes else {}
    section = {"texts": {"column": "text"}, "encoder": "python:plain_encoders.WordCounts", "options": options}
    return config_of(source, out, embed=section | (embed or {}), **sections)


def do(values: dict, spark, **how):
    return run(RunConfig.from_dict(values), spark, **how)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def read_vectors(done, table: str = "embeddings") -> tuple[list, np.ndarray]:
    rows = pq.read_table(done.table_path(table)).sort_by("key")
    return rows.column("key").to_pylist(), np.stack(
        [np.frombuffer(value, "<f4") for value in rows.column("vector").to_pylist()]
    )


@pytest.fixture
def notes(tmp_path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["arrow", "sql"])
def test_texts_give_what_their_vectors_give(spark, tmp_path, engine):
    texts = make_texts(900)
    source = write_texts(tmp_path / "in", texts)
    done = do(text_config(source, tmp_path / "out", engine=engine), spark)
    keys, vectors = read_vectors(done)
    expected = unit(WordCounts()(texts))
    assert keys == [f"t{number:05d}" for number in range(900)]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert set(pq.read_table(done.table_path("embeddings")).column_names) == {"key", "vector"}
    # The same job on the vectors themselves keeps the same.
    pq.write_table(
        pa.table({"key": keys, "embedding": pa.array(list(vectors), pa.list_(pa.float32()))}),
        tmp_path / "vectors.parquet",
    )
    same = do(config_of(tmp_path / "vectors.parquet", tmp_path / "same", engine=engine), spark)
    assert done.document["digests"]["keep_list"] == same.document["digests"]["keep_list"]
    assert verify(done, spark)
    again = prune_again(done, str(tmp_path / "again"), ["prune.keep_ratio=0.1"], spark)
    assert again.document["accounting"]["kept"] == 90
    assert verify(again, spark)
    identity = done.document["encoders"]["embedding"]
    assert identity["weights_sha256"]
    assert done.document["stages"]["embed_embedding"]["info"]["dimension"] == 32


@pytest.mark.slow
def test_a_killed_run_goes_on_by_the_parts_that_are_there(spark, tmp_path, notes):
    texts = make_texts(3000)
    source = write_texts(tmp_path / "in", texts, 2)
    values = text_config(source, tmp_path / "out", notes)
    values["embed"]["options"]["stop_after"] = 1500
    with pytest.raises(Exception, match="told to stop"):
        do(values, spark)
    assert not (tmp_path / "out" / "run.json").exists()
    before = count_notes(notes)
    # `options` belong to what vectors are made of, so the encoder is told another way to go on.
    finished = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*_parts/*/*.json")]
    n_finished = sum(part["counts"]["rows"] for part in finished)
    assert 0 < n_finished < 1500 < before + 600
    for note in notes.iterdir():
        note.write_text(
            ""
        )  # the count starts at 0 again, and the rest is below 1,500... of which some stop it
    if 3000 - n_finished >= 1500:
        with pytest.raises(Exception, match="told to stop"):
            do(values, spark)
        for note in notes.iterdir():
            note.write_text("")
    done = do(values, spark)
    assert count_notes(notes) < 1500
    assert done.document["rows"]["embeddings"] == 3000
    np.testing.assert_allclose(read_vectors(done)[1], unit(WordCounts()(texts)), atol=1e-6)
    assert not list((tmp_path / "out" / "tables").glob("*_parts"))


@pytest.mark.slow
def test_new_files_add_only_their_own(spark, tmp_path, notes):
    source = write_texts(tmp_path / "in", make_texts(700))
    values = text_config(source, tmp_path / "out", notes)
    do(values, spark)
    first = count_notes(notes)
    assert first == 700 + 2  # with those that try the encoder
    write_texts(source, make_texts(200, seed=1), 1, first=700)
    done = do(values, spark)
    assert count_notes(notes) - first == 200 + 2
    assert done.document["rows"]["embeddings"] == 900
    whole = do(text_config(source, tmp_path / "whole"), spark)
    assert read_vectors(done)[0] == read_vectors(whole)[0]
    assert done.document["digests"]["keep_list"] == whole.document["digests"]["keep_list"]
    # A file that was written again is embedded again, one that is gone leaves.
    (source / "0-0.parquet").unlink()
    write_texts(source, make_texts(200, seed=2), 1, first=700)
    before = count_notes(notes)
    done = do(values, spark)
    assert count_notes(notes) - before == 200 + 2
    fresh = do(text_config(source, tmp_path / "fresh"), spark)
    assert done.document["digests"]["keep_list"] == fresh.document["digests"]["keep_list"]
    assert verify(done, spark)


@pytest.mark.slow
def test_other_columns_and_filters_embed_nothing_again(spark, tmp_path, notes):
    source = write_texts(tmp_path / "in", make_texts(700))
    narrow = text_config(source, tmp_path / "out", notes, input={"filter": "n < 500"}, engine="arrow")
    done = do(narrow, spark)
    assert done.document["accounting"]["dropped"]["input.filter"] == 200
    first = count_notes(notes)
    with_dedup = {**narrow, "dedup": {"exact": {"columns": ["text"]}}}
    done = do(with_dedup, spark)
    assert count_notes(notes) == first
    assert set(pq.read_table(done.table_path("embeddings")).column_names) == {"key", "vector", "text"}
    wider = {**with_dedup, "input": {"path": str(source), "filter": "n < 600"}, "engine": "sql"}
    done = do(wider, spark)
    assert count_notes(notes) == first + 100 + 2
    assert done.document["rows"]["embeddings"] == 600
    fresh = do({**wider, "output": {"path": str(tmp_path / "fresh")}, "engine": "arrow"}, spark)
    assert done.document["digests"]["keep_list"] == fresh.document["digests"]["keep_list"]
    assert verify(done, spark)


@pytest.mark.slow
def test_a_key_that_was_another_row_before_is_embedded_again(spark, tmp_path, notes):
    """Keys are unique among the rows that a filter lets through: with another one, they name other rows."""
    texts = make_texts(600)
    table = pa.table({"key": [f"k{n % 300:03d}" for n in range(600)], "text": texts, "n": list(range(600))})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    values = text_config(tmp_path / "in", tmp_path / "out", notes, input={"filter": "n < 300"})
    do(values, spark)
    first = count_notes(notes)
    values["input"]["filter"] = "n BETWEEN 100 AND 399"
    done = do(values, spark)
    assert count_notes(notes) == first + 100 + 2
    keys, vectors = read_vectors(done)
    rows = {f"k{n % 300:03d}": n for n in range(100, 400)}
    np.testing.assert_allclose(vectors, unit(WordCounts()([texts[rows[key]] for key in keys])), atol=1e-6)


@pytest.mark.slow
def test_other_weights_at_the_same_path_are_noticed(spark, tmp_path, notes, caplog):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    source = write_texts(tmp_path / "in", make_texts(300))
    values = text_config(source, tmp_path / "out", notes)
    values["embed"]["options"] |= {"files": [str(weights)], "api_token": "hush-hush"}
    one = do(values, spark)
    written = [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
    assert len(written) > 3
    assert not [text for text in written if "hush-hush" in text]
    first = count_notes(notes)
    do(values, spark)
    assert count_notes(notes) == first
    weights.write_bytes(b"two")
    caplog.set_level("INFO")
    two = do(values, spark)
    assert count_notes(notes) == 2 * first
    assert "weights_sha256 changed" in caplog.text
    assert one.document["encoders"] != two.document["encoders"]
    assert one.document["encoders"]["embedding"]["options"]["api_token"] == "(redacted)"


@pytest.mark.slow
def test_a_view_has_no_files_and_is_embedded_all_the_same(spark, tmp_path, notes, monkeypatch):
    planned = []
    monkeypatch.setattr(
        build_embeddings, "embed_parts", lambda *given: planned.extend(given[4]) or embed_parts(*given)
    )
    source = write_texts(tmp_path / "in", make_texts(1600))
    spark.read.parquet(str(source)).selectExpr("upper(key) AS key", "text").createOrReplaceTempView(
        "some_texts"
    )
    values = text_config(source, tmp_path / "out", notes, input={"path": None, "table": "some_texts"})
    done = do(values, spark)
    assert done.document["rows"]["embeddings"] == 1600
    assert count_notes(notes) == 1602
    assert len(planned) == 4  # of at most 512 rows, more or less
    assert verify(done, spark)


@pytest.mark.parametrize(
    "key", ["n", {"sql": "encode(key, 'utf-8')"}, {"sql": "date_add(DATE '2020-01-01', int(n))"}]
)
@pytest.mark.slow
def test_keys_of_other_types(spark, tmp_path, key):
    source = write_texts(tmp_path / "in", make_texts(600))
    done = do(text_config(source, tmp_path / "out", input={"path": str(source), "key": key}), spark)
    assert done.document["rows"]["embeddings"] == 600
    assert verify(done, spark)


@pytest.mark.slow
def test_bad_texts(spark, tmp_path, notes):
    texts: list = make_texts(400)
    texts[7], texts[9], texts[11] = None, "", "  \n"
    source = write_texts(tmp_path / "in", texts)
    values = text_config(source, tmp_path / "out", notes)
    with pytest.raises(InputError) as caught:
        do(values, spark)
    assert "null text: 1" in str(caught.value)
    assert "'t00007'" in str(caught.value)
    assert "on_bad_items: drop" in str(caught.value)
    first = count_notes(notes)
    values["embed"]["on_bad_items"] = "drop"
    done = do(values, spark)
    assert count_notes(notes) <= first + 400
    dropped = done.document["accounting"]["dropped"]
    assert (dropped["null text"], dropped["empty text"]) == (1, 2)
    rejected = pq.read_table(done.table_path("rejected")).sort_by("key").to_pylist()
    assert [(row["key"], row["reason"]) for row in rejected] == [
        ("t00007", "null text"), ("t00009", "empty text"), ("t00011", "empty text"),
    ]  # fmt: skip
    assert all(row["shard"].endswith(".parquet") for row in rejected)
    assert verify(done, spark)
    told = explain(done, ["t00007", "t00011", "t00008"], spark)
    assert [one.reason for one in told[:2]] == ["null text", "empty text"]
    assert told[0].step == "embed_embedding"
    assert told[2].rank >= 1
    assert verdicts(done, spark).where("reason = 'empty text'").count() == 2
    values["embed"]["max_bad_share"] = 0.005
    with pytest.raises(InputError, match=r"more than embed\.max_bad_share 0\.005"):
        do(values, spark, fresh=True)


@pytest.mark.slow
def test_keys_are_checked_before_anything_is_embedded(spark, tmp_path, notes):
    texts = make_texts(30)
    table = pa.table({"key": ["a", None, "b", "b", *map(str, range(26))], "text": texts})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    values = text_config(tmp_path / "in", tmp_path / "out", notes, cluster={"n_clusters": 3})
    with pytest.raises(InputError, match="null key: 1 row"):
        do(values, spark)
    values["input"]["on_bad_rows"] = "drop"
    with pytest.raises(InputError, match="1 key is not unique, such as 'b'"):
        do(values, spark)
    values["input"]["filter"] = "coalesce(key, '') != 'b'"
    with pytest.raises(InputError, match="n_clusters is 200"):
        do({**values, "cluster": {"n_clusters": 200}}, spark)
    assert not list(notes.iterdir())
    done = do(values, spark)
    assert done.document["accounting"]["dropped"]["null key"] == 1
    assert verify(done, spark)
    reasons = {row.reason: row["count"] for row in verdicts(done, spark).groupBy("reason").count().collect()}
    assert (sum(reasons.values()), reasons["null key"], reasons["input.filter"]) == (30, 1, 2)


@pytest.mark.parametrize("how", ["rows", "shape", "flat", "nan", "list", "text", "none"])
@pytest.mark.slow
def test_an_encoder_that_returns_something_else_is_refused(spark, tmp_path, how):
    source = write_texts(tmp_path / "in", make_texts(50))
    wrong = {"encoder": "python:plain_encoders.Wrong", "options": {"how": how}}
    with pytest.raises(ConfigError, match=r"plain_encoders\.Wrong"):
        do(text_config(source, tmp_path / "out", embed=wrong), spark)


# WebDataset shards.

COLOURS = {"red": (200, 30, 30), "green": (20, 180, 40), "blue": (10, 20, 220)}


def make_image(number: int) -> tuple[str, Image.Image]:
    rng = np.random.default_rng(number)
    name = list(COLOURS)[number % 3]
    pixels = np.clip(np.array(COLOURS[name]) + rng.normal(0, 40, (9, 11, 3)), 0, 255)
    return name, Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def write_shards(folder: Path, n: int, a_shard: int, replace: dict[int, bytes] | None = None) -> Path:
    """Shards as img2dataset writes them; every second image is a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(0, n, a_shard):
        with tarfile.open(folder / f"{shard // a_shard:05d}.tar", "w") as tar:
            for number in range(shard, min(shard + a_shard, n)):
                name, image = make_image(number)
                form = "PNG" if number % 2 else "JPEG"
                body = (replace or {}).get(number, encode(image, form))
                meta = {
                    "uid": f"u{number:04d}",
                    "width": 9 + number % 5,
                    "score": None if number % 7 == 0 else 0.5,
                }
                members = {"jpg" if form == "JPEG" else "png": body, "txt": f"a {name} thing".encode()}
                members |= {"json": json.dumps(meta).encode(), "cls": b"3"}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def pack(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", errors="surrogateescape") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def shard_config(pattern: Path | str, out: Path | str, notes: Path | None = None, **sections):
    values = config_of("", out, **sections)
    del values["input"]["path"]
    options = {"notes": str(notes)} if notes else {}
    section = {"images": {"webdataset": str(pattern)}, "encoder": "python:plain_encoders.Thumbnails"}
    values["embed"] = section | {"options": options} | sections.get("embed", {})
    return values


@pytest.mark.parametrize("engine", ["arrow", pytest.param("sql", marks=pytest.mark.slow)])
def test_shards_to_keep_list(spark, tmp_path, engine):
    folder = write_shards(tmp_path / "in", 300, 64)
    done = do(shard_config(folder / "{00000..00004}.tar", tmp_path / "out", engine=engine), spark)
    keys, vectors = read_vectors(done)
    images = [
        Image.open(io.BytesIO(encode(make_image(i)[1], "PNG" if i % 2 else "JPEG"))) for i in range(300)
    ]
    assert keys == [f"{number:06d}" for number in range(300)]
    np.testing.assert_allclose(vectors, unit(Thumbnails()(images)), atol=1e-6)
    account = done.document["accounting"]
    assert (account["rows_in"], account["kept"]) == (300, 90)
    assert verify(done, spark)
    kept = set(pq.read_table(done.table_path("keep_list")).column("key").to_pylist())
    trie = open_run(done.path).keep_trie()
    assert {key for key in keys if key in trie} == kept


@pytest.mark.slow
def test_exports_know_the_shards_and_the_rejected(spark, tmp_path):
    folder = write_shards(tmp_path / "in", 120, 30, {40: b"no image"})
    values = shard_config(
        folder, tmp_path / "out", embed={"on_bad_items": "drop"}, prune={"keep_ratio": 0.12}
    )
    done = do(values, spark)
    export(done, "shard_counts", tmp_path / "sizes.json", spark)
    kept = pq.read_table(done.table_path("keep_list")).column("key").to_pylist()
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sizes == {f"{n:05d}.tar": sum(int(key) // 30 == n for key in kept) for n in range(4)}
    report = export(done, "txt", tmp_path / "bad.txt", spark, rows="dropped", reason="bad_rows")
    assert (tmp_path / "bad.txt").read_text() == "000040\n"
    assert report.not_in_tables == {}
    report = export(done, "curator", tmp_path / "ids", spark)
    assert report.by_reason["bad_rows"] == 1
    assert report.n_rows == 120 - len(kept)
    # Shards of one name in two folders: open_clip would mix them up.
    write_shards(tmp_path / "more" / "a", 60, 60)
    write_shards(tmp_path / "more" / "b", 120, 60)
    (tmp_path / "more" / "b" / "00000.tar").unlink()
    (tmp_path / "more" / "b" / "00001.tar").rename(tmp_path / "more" / "b" / "00000.tar")
    values = shard_config(tmp_path / "more" / "*" / "00000.tar", tmp_path / "two")
    with pytest.raises(InputError, match="1 names are of more than one shard"):
        export(do(values, spark), "shard_counts", tmp_path / "none.json", spark)


@pytest.mark.parametrize("engine", ["arrow", "sql"])
@pytest.mark.slow
def test_fields_of_json_are_columns(spark, tmp_path, notes, engine):
    folder = write_shards(tmp_path / "in", 300, 64)
    values = shard_config(
        folder, tmp_path / "out", notes, engine=engine, input={"key": "uid", "filter": "width >= 10 AND score > 0.4"},
        dedup={"exact": {"columns": ["txt", "width"]}}, cluster={"n_clusters": 3},
    )  # fmt: skip
    left = [n for n in range(300) if 9 + n % 5 >= 10 and n % 7]
    done = do(values, spark)
    assert read_vectors(done)[0] == [f"u{number:04d}" for number in left]
    assert count_notes(notes) == len(left) + 2
    assert done.document["accounting"]["dropped"]["input.filter"] == 300 - len(left)
    assert done.document["accounting"]["dropped"]["exact duplicates"] == len(left) - 3 * 4
    assert verify(done, spark)
    of_filter, other = explain(done, ["u0000", f"u{left[-1]:04d}"], spark)
    assert (of_filter.reason, of_filter.where["file"]) == ("input.filter", str(folder / "00000.tar"))
    assert (other.reason, other.where["file"]) == ("exact duplicates", str(folder / "00004.tar"))
    assert verdicts(done, spark).count() == 300


@pytest.mark.slow
def test_shards_that_only_spark_reaches(spark, tmp_path, viewed, notes):
    write_shards(viewed / "shards a%20b", 200, 50)
    local = do(shard_config(viewed / "shards a%20b", tmp_path / "local", input={"key": "uid"}), spark)
    values = shard_config(f"{VIEW}/shards a%20b", f"{VIEW}/run-{tmp_path.name}", notes, input={"key": "uid"})
    done = do(values, spark)
    assert done.document["engine"]["name"] == "sql"
    assert count_notes(notes) == 202
    assert done.document["digests"]["keep_list"] == local.document["digests"]["keep_list"]
    assert verify(done, spark)


@pytest.mark.slow
def test_a_new_shard_adds_only_its_own(spark, tmp_path, notes):
    folder = write_shards(tmp_path / "in", 200, 50)
    values = shard_config(folder, tmp_path / "out", notes)
    do(values, spark)
    assert count_notes(notes) == 202
    write_shards(tmp_path / "more", 250, 50)
    shutil.move(tmp_path / "more" / "00004.tar", folder / "00004.tar")
    done = do(values, spark)
    assert count_notes(notes) == 202 + 52
    assert done.document["rows"]["embeddings"] == 250
    assert verify(done, spark)


@pytest.mark.slow
def test_images_in_columns_and_files(spark, tmp_path):
    bodies = [encode(make_image(number)[1], "PNG") for number in range(60)]
    (tmp_path / "files").mkdir()
    paths = [str(tmp_path / "files" / f"a b {number}.png") for number in range(60)]
    for path, body in zip(paths, bodies, strict=True):
        Path(path).write_bytes(body)
    paths[3] = str(tmp_path / "files" / "nothing.png")
    structs = pa.array([{"bytes": body, "path": None} for body in bodies])
    (tmp_path / "in").mkdir()
    keys = [f"k{number:02d}" for number in range(60)]
    pq.write_table(pa.table({"key": keys, "image": structs, "path": paths}), tmp_path / "in" / "a.parquet")
    digests = set()
    for name, images in (("of-bytes", {"column": "image.bytes"}), ("of-files", {"path_column": "path"})):
        embed = {"images": images, "encoder": "python:plain_encoders.Thumbnails", "on_bad_items": "drop"}
        values = config_of(
            tmp_path / "in",
            tmp_path / name,
            embed=embed,
            cluster={"n_clusters": 3},
            input={"filter": "key != 'k03'"},
        )
        if name == "of-files":
            del values["input"]["filter"]
        done = do(values, spark)
        digests.add(done.document["digests"]["keep_list"])
        assert done.document["rows"]["embeddings"] == 59
    assert done.document["accounting"]["dropped"]["file not found"] == 1
    assert len(digests) == 1


@pytest.mark.slow
def test_bad_images(spark, tmp_path):
    whole = encode(make_image(1)[1], "PNG")
    replace = {3: b"", 5: b"GARBAGE" * 9, 8: whole[: len(whole) // 2]}
    folder = write_shards(tmp_path / "in", 100, 25, replace)
    with tarfile.open(folder / "00009.tar", "w") as tar:
        info = tarfile.TarInfo("no-image.txt")
        tar.addfile(info)
    values = shard_config(folder, tmp_path / "out", embed={"on_bad_items": "drop"}, cluster={"n_clusters": 3})
    done = do(values, spark)
    rejected = {row["key"]: (Path(row["shard"]).name, row["reason"]) for row in
                pq.read_table(done.table_path("rejected")).to_pylist()}  # fmt: skip
    assert rejected["000003"] == ("00000.tar", "empty image")
    assert rejected["no-image"] == ("00009.tar", "no image in the sample")
    assert set(rejected) == {"000003", "000005", "000008", "no-image"}
    account = done.document["accounting"]
    assert account["rows_in"] == 101
    assert sum(account["dropped"].values()) + account["kept"] == 101
    assert verify(done, spark)


def test_functions_on_dataframes(spark, tmp_path):
    folder = write_shards(tmp_path / "in", 40, 20, {3: b""})
    samples = read_webdataset(spark, [str(folder / "00000.tar"), str(folder / "00001.tar")])
    assert {"uid", "width", "score", "txt", "json", "shard"} <= set(samples.columns)
    rows = embed_images(samples, key="uid", encoder="python:plain_encoders.Thumbnails").collect()
    assert len(rows) == 40
    assert {row.key: row.problem for row in rows if row.problem} == {"u0003": "empty image"}
    texts = embed_texts(samples, text="txt", encoder="python:plain_encoders.WordsAsThumbnails")
    assert {row.dimension for row in texts.collect()} == {49}
    with pytest.raises(ConfigError, match="on_bad_items is a setting of a run"):
        embed_images(samples, encoder="python:plain_encoders.Thumbnails", on_bad_items="drop")
    with pytest.raises(ConfigError, match="unknown key 'batchsize'; did you mean 'batch_size'"):
        embed_images(samples, encoder="python:plain_encoders.Thumbnails", batchsize=3)
    with pytest.raises(InputError, match="there is no column 'caption'"):
        embed_texts(samples, text="caption", encoder="python:plain_encoders.WordCounts")


BAD = {
    "no shard": ({"images": {"webdataset": "{tmp}/nothing/*.tar"}}, r"names no \.tar file"),
    "a gap in a range": (
        {"images": {"webdataset": "{tmp}/in/{{00000..00009}}.tar"}},
        r"there is no shard .*00004\.tar",
    ),
    "twice": ({"images": {"webdataset": ["{tmp}/in/00000.tar", "{tmp}/in"]}}, "is named twice"),
    "no such encoder": ({"encoder": "{tmp}/no-model"}, "no-model"),
    "a directory that is no model": ({"encoder": "{tmp}/in"}, "{tmp}/in"),
    "no such class": ({"encoder": "python:plain_encoders.Nobody"}, "Nobody"),
    "no such module": ({"encoder": "python:no_such_module.X"}, "no_such_module"),
    "no GPU": ({"device": "cuda"}, "cuda"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(spark, tmp_path, name):
    write_shards(tmp_path / "in", 200, 50)
    section, message = BAD[name]
    text = json.dumps(section).replace("{tmp}", str(tmp_path)).replace("{{", "{").replace("}}.", "}.")
    values = shard_config(tmp_path / "in", tmp_path / "out", embed=json.loads(text))
    with pytest.raises((ConfigError, InputError), match=message.replace("{tmp}", str(tmp_path))) as caught:
        do(values, spark)
    assert "to mend it" in str(caught.value)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.slow
def test_damaged_shards_are_refused_by_name(spark, tmp_path):
    folder = write_shards(tmp_path / "in", 100, 50)
    body = (folder / "00001.tar").read_bytes()
    for content, message in (
        (body[: len(body) // 2 + 100], "is cut off"),
        (b"no tar at all" * 100, "no whole tar"),
        (b"\x1f\x8b" + body, "is compressed"),
        (pack({"a.jpg": b"x", "a.JPG": b"y"}), "two members .jpg"),
        (pack({"a\udcff.jpg": b"x"}), "not UTF-8"),
        (pack({"a.jpg": b"x", "a.json": b" " * (16 << 20 | 1)}), "of 16,777,217 bytes"),
    ):
        (folder / "00001.tar").write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            do(shard_config(folder, tmp_path / "out"), spark)
        assert "00001.tar" in str(caught.value)


# Several embeddings, and their score.


@pytest.mark.parametrize("engine", ["arrow", "sql"])
@pytest.mark.slow
def test_the_score_of_image_and_text(spark, tmp_path, engine):
    folder = write_shards(tmp_path / "in", 240, 60, {5: b""})
    values = shard_config(folder, tmp_path / "out", engine=engine)
    image = {**values["embed"], "name": "embedding", "on_bad_items": "drop"}
    text = {
        "name": "caption", "texts": {"column": "txt"}, "encoder": "python:plain_encoders.WordsAsThumbnails",
    }  # fmt: skip
    values["embed"] = [text, image]
    values["score_filter"] = {"clip_score": {"image": "embedding", "text": "caption"}, "keep_fraction": 0.5}
    done = do(values, spark)
    keys, images = read_vectors(done)
    of_captions, captions = read_vectors(done, "embeddings_caption")
    assert len(of_captions) == 240
    assert len(keys) == 239
    scores = dict(
        zip(keys, (images.astype(float) * captions[[int(k) != 5 for k in of_captions]]).sum(1), strict=True)
    )
    best = sorted(keys, key=lambda key: (-scores[key], key))[:119]
    left = pq.read_table(done.table_path("filtered")).column("key").to_pylist()
    assert sorted(left) == sorted(best)
    dropped = done.document["accounting"]["dropped"]
    assert (dropped["empty image"], dropped["score_filter"]) == (1, 120)
    assert verify(done, spark)
    export(done, "clip_retrieval", tmp_path / "clip", spark)
    written = pq.read_table(tmp_path / "clip/metadata/metadata_0.parquet").column("image_path").to_pylist()
    assert len(written) == done.document["accounting"]["kept"]
    for name, vectors, of in (("img_emb", images, keys), ("text_emb", captions, of_captions)):
        array = np.load(tmp_path / "clip" / name / f"{name}_0.npy", allow_pickle=False)
        expected = vectors[[list(of).index(key) for key in written]]
        assert array.dtype == np.float16
        assert np.abs(array.astype(np.float32) - expected).max() < 1e-3


@pytest.mark.slow
def test_embeddings_that_cannot_be_compared_are_refused_before_they_are_made(spark, tmp_path, notes):
    folder = write_shards(tmp_path / "in", 100, 50)
    values = shard_config(folder, tmp_path / "out", notes)
    text = {"name": "caption", "texts": {"column": "txt"}, "encoder": "python:plain_encoders.WordCounts"}
    values["embed"] = [{**values["embed"], "name": "embedding"}, text]
    text["options"] = {"notes": str(notes)}
    values["score_filter"] = {"clip_score": {"image": "embedding", "text": "caption"}, "at_least": 0.1}
    with pytest.raises(InputError, match=r"'caption' have 32 dimensions, those of 'embedding' 49"):
        do(values, spark)
    assert count_notes(notes) == 100 + 2 + 2


@pytest.mark.slow
def test_vectors_that_are_there_and_others_for_the_score(spark, tmp_path):
    """Of a table with embeddings, images are embedded for the score alone."""
    bodies = [encode(make_image(number)[1], "PNG") for number in range(90)]
    texts = [f"a {make_image(number)[0]} thing" for number in range(90)]
    vectors = pa.array(list(unit(WordCounts()(make_texts(90))).astype(np.float32)), pa.list_(pa.float32()))
    keys = [f"k{number:02d}" for number in range(90)]
    table = pa.table({"key": keys, "embedding": vectors, "jpeg": bodies, "text": texts})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    embed = [
        {"name": "clip_image", "images": {"column": "jpeg"}, "encoder": "python:plain_encoders.Thumbnails"},
        {
            "name": "clip_text",
            "texts": {"column": "text"},
            "encoder": "python:plain_encoders.WordsAsThumbnails",
        },
    ]
    score = {"clip_score": {"image": "clip_image", "text": "clip_text"}, "keep_fraction": 0.5}
    values = config_of(
        tmp_path / "in", tmp_path / "out", embed=embed, score_filter=score, cluster={"n_clusters": 3}
    )
    wrong = {"clip_score": {"image": "clip_image", "text": "embedding"}, "keep_fraction": 0.5}
    with pytest.raises(InputError, match="'clip_image' have 49 dimensions, those of 'embedding' 32"):
        do({**values, "score_filter": wrong}, spark)
    done = do(values, spark)
    assert done.document["accounting"]["dropped"]["score_filter"] == 45
    assert set(done.document["encoders"]) == {"clip_image", "clip_text"}
    assert verify(done, spark)


# With everything else that a run can do.

OPTIONS = {
    "exact and a score": {
        "dedup": {"exact": {"columns": ["text"], "order_by": "n"}},
        "score_filter": {"column": "n", "keep_fraction": 0.5, "within": {"sql": "n % 7"}},
    },
    "minhash, semantic, an SQL key": {
        "dedup": {"minhash": {"column": "text"}, "semantic": {"eps": [0.05, 0.2], "n_clusters": 4}},
        "input": {"key": {"sql": "concat(key, '/', text)"}}, "trie": {"key": "substring_index(key, '/', 1)"},
    },
    "full passes, a condition, drop": {
        "cluster": {"train": "full", "n_clusters": 5, "n_iter": 3},
        "score_filter": {"expr": "n % 3 != 0"}, "prune": {"keep_ratio": 0.5, "which_to_keep": "stratified"},
        "embed": {"on_bad_items": "drop", "max_bad_share": 1.0}, "input": {"on_bad_rows": "drop"},
    },
    "published": {"output": {"table": "spark_catalog.default.embedded"}},
}  # fmt: skip


@pytest.mark.parametrize(("number", "name"), list(enumerate(OPTIONS)))
@pytest.mark.slow
def test_other_options_beside_embed(spark, tmp_path, number, name):
    """The same as from the vectors themselves, which the other engine takes."""
    texts = make_texts(500)
    source = write_texts(tmp_path / "in", texts)
    engine, other = ("arrow", "sql") if number % 2 else ("sql", "arrow")
    values = text_config(source, tmp_path / "out", engine=engine)
    for section, content in OPTIONS[name].items():
        values[section] = {**values.get(section, {}), **content}
    done = do(values, spark)
    assert verify(done, spark)
    rows = pq.read_table(source).sort_by("key")
    vectors = pa.array(list(WordCounts()(texts)), pa.list_(pa.float32()))
    pq.write_table(rows.append_column("embedding", vectors), tmp_path / "vectors.parquet")
    del values["embed"]
    values["engine"] = other
    values["input"] = {**values["input"], "path": str(tmp_path / "vectors.parquet")}
    values["output"] = {"path": str(tmp_path / "vectors")}
    same = do(values, spark)
    assert done.document["digests"]["keep_list"] == same.document["digests"]["keep_list"]
