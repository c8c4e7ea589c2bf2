"""Reports that look up images and texts in the input: columns of bytes and of paths, shards; input that changed."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_of, make_embeddings, make_keys, write_table
from made_shards import add_member
from PIL import Image
from test_key_types import KEYS

from spark_dbp import RunConfig, explain, open_run, run, show_cluster, write_report
from spark_dbp.errors import InputError
from spark_dbp.explore.report.run_rows import hash_keys

N = 400


def make_image(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40 + number % 200, 30), (number % 256, 90, 200)).save(sink, "PNG")
    return sink.getvalue()


def read_data(path: Path) -> dict:
    text = path.read_bytes()
    return json.loads(re.search(rb'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def made(spark, tmp_path_factory):
    """A run on rows with images as bytes (some bad), as paths and with captions, of which some are duplicates."""
    folder = tmp_path_factory.mktemp("report input")
    (folder / "files").mkdir()
    images = [make_image(number) for number in range(N)]
    paths = [str(folder / "files" / f"{number}.png") for number in range(N)]
    for path, content in zip(paths, images, strict=True):
        Path(path).write_bytes(content)
    shown = [
        b"no image" if number % 9 == 0 else None if number % 9 == 1 else images[number] for number in range(N)
    ]
    captions = [f"caption of {number} <i>&\n next" if number % 5 else None for number in range(N)]
    keys = make_keys(N)
    source = write_table(
        folder / "rows", keys, make_embeddings(N, 8, 5), n_files=2,
        **{"the.image": pa.array(shown, pa.binary()), "file": paths, "caption": captions, "n": list(range(N)),
           "kind": ["a", "b"] * (N // 2)},
    )  # fmt: skip
    values = config_of(
        source, folder / "run", cluster={"n_clusters": 5, "n_iter": 4}, input={"filter": "n >= 20"},
        dedup={"semantic": {"eps": 0.05, "n_clusters": 2}}, report={"caption": "caption"},
    )  # fmt: skip
    return run(RunConfig.from_dict(values), spark), dict(zip(keys, range(N), strict=True))


def iter_rows(data: dict):
    for of in data["examples"].values():
        for name in ("nearest", "kept", "dropped"):
            for key, *_, caption, image in of[name]:
                yield key, caption, image
    for rows in data["pairs"].values():
        for _, one, caption, image, other, other_caption, other_image in rows:
            yield one, caption, image
            yield other, other_caption, other_image


def test_captions_and_images_are_those_of_the_rows(spark, made, tmp_path):
    done, numbers = made
    out = tmp_path / "a.html"
    written = write_report(done, out, ["report.image=the.image"], spark)
    data = read_data(out)
    rows = list(iter_rows(data))
    assert len(data["pairs"]["semantic"]) > 1
    bad = {key for key, *_ in rows if numbers[key] % 9 < 2}
    for key, caption, image in rows:
        number = numbers[key]
        assert caption == (f"caption of {number} <i>& next" if number % 5 else None)
        assert (image == -1) == (number % 9 < 2)
        if image >= 0:
            content, width, height = data["thumbnails"][image]
            wide = 40 + number % 200
            assert width == min(96, wide)
            assert height == pytest.approx(30 * min(1, 96 / wide), abs=1)
            assert content[:4] == "UklG"  # RIFF
    assert written.left_out["not an image that can be decoded"] == sum(numbers[key] % 9 == 0 for key in bad)
    assert written.left_out["there is no image"] == sum(numbers[key] % 9 == 1 for key in bad)
    assert written.note == ""
    assert "Images that could not be shown" in out.read_text()
    write_report(done, tmp_path / "b.html", ["report.image=the.image"], spark)
    assert out.read_bytes() == (tmp_path / "b.html").read_bytes()


def test_paths_sql_and_nothing(spark, made, tmp_path):
    done, numbers = made
    lost = Path(next(iter(sorted((Path(done.path).parent / "files").iterdir()))))
    kept = lost.read_bytes()
    lost.unlink()
    settings = ["report.image=file", "report.caption={sql: \"concat('n=', n)\"}"]
    written = write_report(done, tmp_path / "a.html", settings, spark)
    lost.write_bytes(kept)
    rows = list(iter_rows(read_data(tmp_path / "a.html")))
    assert all(caption == f"n={numbers[key]}" for key, caption, _ in rows)
    missing = {key for key, _, image in rows if image == -1}
    assert missing <= {key for key, number in numbers.items() if number == int(lost.stem)}
    assert written.left_out.get("the file cannot be read", 0) == len(missing)
    written = write_report(done, tmp_path / "a.html", ["report.caption=false"], spark)
    assert (written.captions, written.thumbnails) == (0, 0)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("report.image=imag", "report.image: there is no column 'imag'"),
        ("report.image=n", "report.image: column 'n' is BIGINT"),
        ("report.caption=captions", "did you mean 'caption'"),
    ],
)
def test_columns_that_cannot_be_shown(spark, made, tmp_path, setting, words):
    with pytest.raises(InputError, match=re.escape(words)):
        write_report(made[0], tmp_path / "a.html", [setting], spark)
    assert not (tmp_path / "a.html").exists()


def test_input_that_changed_or_is_gone(spark, made, tmp_path):
    """The report is written all the same, and says so."""
    done, _ = made
    rows = Path(done.path).parent / "rows"
    more = rows / "more.parquet"
    shutil.copy(rows / "00000.parquet", more)
    written = write_report(done, tmp_path / "a.html", (), spark)
    assert "has changed since" in written.note
    assert written.note in (tmp_path / "a.html").read_text()
    assert written.captions == 0
    more.unlink()
    rows.rename(rows.with_name("moved"))
    written = write_report(done, tmp_path / "a.html", (), spark)
    rows.with_name("moved").rename(rows)
    assert "cannot be read any more" in written.note
    assert written.examples > 0
    assert write_report(done, tmp_path / "a.html", (), spark).note == ""


@pytest.mark.slow
def test_a_view_is_compared_by_its_rows(spark, tmp_path):
    """By the columns that the run read, whatever else the report shows."""
    keys, vectors = make_keys(60), make_embeddings(60, 6, 2)
    source = write_table(tmp_path / "in", keys, vectors, caption=[f"c{number}" for number in range(60)])
    rows = spark.read.parquet(str(source))
    rows.createOrReplaceTempView("shown_rows")
    given = {"path": None, "table": "shown_rows", "key": {"sql": "concat(key, '!')"}}
    values = config_of(source, tmp_path / "run", input=given, cluster={"n_clusters": 2, "n_iter": 2})
    done = run(RunConfig.from_dict(values), spark)
    for setting in ("report.caption=caption", "report.caption={sql: \"concat(caption, '.')\"}"):
        written = write_report(done, tmp_path / "a.html", [setting], spark)
        assert (written.note, written.captions > 0) == ("", True)
    other = "transform(embedding, x -> cast(x + 1 AS FLOAT)) AS embedding"
    rows.selectExpr("key", other, "caption").createOrReplaceTempView("shown_rows")
    written = write_report(done, tmp_path / "a.html", ["report.caption=caption"], spark)
    assert "has changed since the run: 60 rows then, 60 rows now" in written.note
    assert written.captions == 0


def test_a_cluster_with_its_images(spark, made):
    done, numbers = made
    cluster = int(done.quotas()["cluster_id"][0])
    shown = show_cluster(done, cluster, ["report.image=the.image"], spark)
    html = shown._repr_html_()
    assert "<img alt='caption of" in html
    assert "<i>" not in html
    assert all(f"caption of {numbers[key]} " in text for key, text in shown.found.captions.items())


def test_keys_as_bytes(spark, tmp_path):
    """They are shown in hexadecimal, and found again in the input."""
    keys = [bytes([0, 255, number]) for number in range(60)]
    captions = [f"c{number}" for number in range(60)]
    source = write_table(tmp_path / "in", keys, make_embeddings(60, 6, 2), caption=captions)
    values = config_of(source, tmp_path / "run", cluster={"n_clusters": 2, "n_iter": 2})
    done = run(RunConfig.from_dict(values), spark)
    write_report(done, tmp_path / "a.html", ["report.caption=caption"], spark)
    for key, caption, _ in iter_rows(read_data(tmp_path / "a.html")):
        assert caption == f"c{bytes.fromhex(key)[2]}"


@pytest.mark.slow
def test_a_run_on_shards_shows_their_images(spark, tmp_path):
    """Without being asked: they are what was embedded."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(shard * 30, shard * 30 + 30):
                add_member(tar, f"{number:04d}.png", make_image(number))
                add_member(tar, f"{number:04d}.txt", f"text {number}".encode())
    values = {
        "embed": {
            "images": {"webdataset": str(tmp_path / "*.tar")},
            "encoder": "python:plain_encoders.Thumbnails",
        },
        "output": {"path": str(tmp_path / "run")},
        "cluster": {"n_clusters": 3, "n_iter": 2},
        "prune": {"keep_ratio": 0.5},
    }
    run(RunConfig.from_dict(values), spark)
    written = write_report(open_run(tmp_path / "run"), tmp_path / "a.html", ["report.caption=txt"], spark)
    data = read_data(tmp_path / "a.html")
    assert written.thumbnails == len({key for key, *_ in iter_rows(data)})
    for key, caption, image in iter_rows(data):
        assert caption == f"text {int(key)}"
        assert data["thumbnails"][image][1] == min(96, 40 + int(key) % 200)
    assert np.all([one[2] <= 30 for one in data["thumbnails"]])
    assert written.clusters_shown == 3
    done = open_run(tmp_path / "run")
    assert explain(done, ["0003"], spark)[0].where["status"] == "unchanged"
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add_member(tar, "0003.png", make_image(3))
    (told,) = explain(done, ["0003"], spark)
    assert (told.where["status"], told.cluster_id is not None) == ("changed", True)
    assert "has changed since the run" in told.where["why"]
    assert write_report(done, tmp_path / "a.html", (), spark).note.endswith(f"{told.where['why']}.")


def test_keys_are_hashed_as_spark_does(spark, tmp_path):
    """Of every type of key, as a run writes them: `random` orders by this hash."""
    session = {"spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS"}
    before = {name: spark.conf.get(name) for name in session}
    columns = [f"{sql} AS k{number}" for number, (sql, _) in enumerate(KEYS.values())]
    hashes = [f"xxhash64(k{number}, 7L) AS h{number}" for number in range(len(columns))]
    try:
        for name, value in session.items():
            spark.conf.set(name, value)
        frame = spark.range(60).selectExpr(*columns)  # as many as these types have room for
        frame = frame.selectExpr("*", *hashes)
        frame.coalesce(1).write.parquet(str(tmp_path / "keys"))
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
    found = pq.read_table(tmp_path / "keys").combine_chunks()
    for number, name in enumerate(KEYS):
        keys = found.column(f"k{number}").combine_chunks()
        assert hash_keys(keys, 7).tolist() == found.column(f"h{number}").to_pylist(), name


def test_random_on_times_and_text_that_is_not_utf_8(spark, tmp_path):
    """Both are looked up in the input, and told apart."""
    raw = pa.array(
        [bytes([0xFE + number % 2]) + b"%03d" % (number // 2) for number in range(80)], pa.binary()
    )
    texts = pa.Array.from_buffers(pa.string(), 80, raw.buffers())
    times = pa.array(range(1_700_000_000_000_000, 1_700_000_000_000_080), pa.timestamp("us", "UTC"))
    for number, keys in enumerate((texts, times)):
        folder = tmp_path / f"in {number}"
        folder.mkdir()
        table = pa.table({
            "key": keys, "embedding": pa.array(make_embeddings(80, 6, 2).tolist(), pa.list_(pa.float32())),
            "caption": [f"c{row}" for row in range(80)],
        })  # fmt: skip
        pq.write_table(table, folder / "a.parquet")
        values = config_of(folder, tmp_path / f"run {number}", cluster={"n_clusters": 2, "n_iter": 2})
        values["prune"]["which_to_keep"] = "random"
        done = run(RunConfig.from_dict(values), spark)
        write_report(done, tmp_path / "a.html", ["report.caption=caption"], spark)
        rows = list(iter_rows(read_data(tmp_path / "a.html")))
        assert len(rows) > 10
        for key, caption, _ in rows:
            if number:
                assert caption == f"c{int(key) - 1_700_000_000_000_000}"
            else:
                assert caption == f"c{2 * int(key[4:]) + (key[:4] == chr(92) + 'xff')}"
        assert "Cluster 1" in str(show_cluster(done, 1, (), spark))
