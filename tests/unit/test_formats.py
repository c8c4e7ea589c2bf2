"""Arrays, and what lies beside them, as other programs write them: headers, counts, ranges of rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dbp.config_input import make_format_options
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.io.formats.arrays import RowReader, find_npy, find_npz, find_raw
from spark_dbp.io.formats.dataset import open_dataset
from spark_dbp.io.formats.parts import Part, Range, read_range, share_rows
from spark_dbp.io.formats.row_files import ArrayFile, find_lines, find_table
from spark_dbp.io.formats.semdedup import tell_kind, to_distances

RNG = np.random.default_rng(0)


def read_all(parts, names):
    batches = [
        batch
        for ranges in share_rows(parts, 10**6, few_bytes=4096)
        for place in ranges
        for batch in read_range(parts[place.number], place, names)
    ]
    return pa.Table.from_batches(batches)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_rows_of_an_array_in_a_zip(tmp_path, save, dtype):
    values = RNG.standard_normal((1000, 7)).astype(dtype)
    save(tmp_path / "x.npz", other=values[:3], l14_img=values)
    place = find_npz(str(tmp_path / "x.npz"), "l14_img")
    assert place.shape == (1000, 7)
    with RowReader(place, 990) as rows:
        np.testing.assert_array_equal(rows.read(10), values[990:])
        with pytest.raises(InputError, match="has 1,000 rows, no row 1,000"):
            rows.read(1)
    parts = [Part((ArrayFile(place, "embedding"),))]
    found = read_all(parts, ["embedding"]).column("embedding").to_pylist()
    np.testing.assert_array_equal(np.array(found, np.float32), values.astype(np.float32))
    n_tasks = len(share_rows(parts, 10**6, few_bytes=4096))
    assert (n_tasks == 1) == (save is np.savez_compressed)


BAD_ARRAYS = [
    (lambda path: np.save(path, np.asfortranarray(np.ones((3, 2)))), "in Fortran order"),
    (lambda path: np.save(path, np.ones((3, 2), ">f4")), "is big endian"),
    (lambda path: np.save(path, np.array([{}, {}], object)), "holds Python objects"),
    (lambda path: np.save(path, np.ones((2, 2, 2))), "has 3 dimensions"),
    (lambda path: np.save(path, np.zeros(3, "u8,u8")), "holds records"),
    (lambda path: (np.save(path, np.ones((9, 9))), os.truncate(path, 500)), "is cut off: it has 500 bytes"),
    (lambda path: (np.save(path, np.ones((9, 9))), os.truncate(path, 60)), "its header ends early"),
    (lambda path: Path(path).write_bytes(b"no array"), "is no .npy array"),
    (lambda path: Path(path).write_bytes(b"\x93NUMPY\x09\x00" + bytes(20)), "a header of version 9.0"),
    (lambda path: None, "there is no file"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "words"), BAD_ARRAYS, ids=[words for _, words in BAD_ARRAYS])
def test_arrays_that_are_refused(tmp_path, write, words):
    path = str(tmp_path / "x.npy")
    write(path)
    with pytest.raises(InputError, match=words) as caught:
        find_npy(path)
    assert path in caught.value.what
    assert caught.value.mend


def test_a_zip_that_is_cut_off_and_one_without_the_array(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, b32_img=np.ones((2, 2)))
    with pytest.raises(InputError, match="has no array 'l14_img'") as caught:
        find_npz(str(path), "l14_img")
    assert "b32_img" in caught.value.mend
    os.truncate(path, 100)
    with pytest.raises(InputError, match=r"is no whole \.npz file"):
        find_npz(str(path), "b32_img")


def test_a_memmap_of_another_shape(tmp_path):
    np.ones((5, 4), np.float32).tofile(tmp_path / "x")
    assert find_raw(str(tmp_path / "x"), "<f4", (5, 4)).n_rows == 5
    with pytest.raises(InputError, match="where 6 x 4 values of <f4 need 96"):
        find_raw(str(tmp_path / "x"), "<f4", (6, 4))


@pytest.mark.parametrize("end", ["\n", ""])
def test_lines_are_found_from_any_row(tmp_path, end):
    n_rows = 200_001
    (tmp_path / "keys.txt").write_text("\n".join(f"k{i}" for i in range(n_rows)) + end)
    file = find_lines(str(tmp_path / "keys.txt"), "key")
    assert file.n_rows == n_rows
    for start in (0, 1, 65_535, 65_536, 65_537, 131_072, 200_000):
        with file.open(start, n_rows, ["key"]) as rows:
            assert rows.read(1)["key"].to_pylist() == [f"k{start}"]


def test_files_of_other_lengths_are_not_paired(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 2)))
    pq.write_table(pa.table({"uid": ["a"] * 4}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x.npy has 5 rows, .*x.parquet 4: they cannot be paired"):
        Part(
            (
                ArrayFile(find_npy(str(tmp_path / "x.npy")), "embedding"),
                find_table(str(tmp_path / "x.parquet")),
            )
        )


def test_a_table_is_read_from_any_row_with_plain_types(tmp_path):
    table = pa.table(
        {
            "n": pa.array(range(1000), pa.uint16()),
            "t": pa.array(range(1000), pa.timestamp("ns")),
            "kind": pa.array([f"k{i % 3}" for i in range(1000)]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    file = find_table(str(tmp_path / "x.parquet"))
    assert file.columns == {"n": pa.int32(), "t": pa.timestamp("us"), "kind": pa.string()}
    assert file.ends == (300, 600, 900, 1000)
    with file.open(299, 1000, ["n", "kind"]) as rows:
        assert rows.read(2)["n"].to_pylist() == [299, 300]
        found = rows.read(699)
    assert found["n"].to_pylist() == list(range(301, 1000))
    assert found["kind"].to_pylist() == [f"k{i % 3}" for i in range(301, 1000)]


def write_pairs(path, n_parts=3, array="img_emb", width=1):
    (path / array).mkdir(parents=True)
    (path / "metadata").mkdir()
    for part in range(n_parts):
        np.save(path / array / f"{array}_{part:0{width}d}.npy", np.full((4, 2), part, np.float16))
        names = pa.table({"image_path": [f"{part}-{row}" for row in range(4)]})
        pq.write_table(names, path / "metadata" / f"metadata_{part:0{width}d}.parquet")
    return path


def test_partitions_of_clip_retrieval_are_paired_by_number(tmp_path):
    write_pairs(tmp_path / "in", 12)  # not padded: 10 comes before 2 by name
    dataset = open_dataset("clip_retrieval", [str(tmp_path / "in")], {})
    found = read_all(dataset.parts, ["image_path", "embedding"]).to_pylist()
    assert len(found) == 48
    assert all(row["embedding"] == [float(row["image_path"].split("-")[0])] * 2 for row in found)


def test_a_partition_without_its_partner(tmp_path):
    folder = write_pairs(tmp_path / "in")
    (folder / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(InputError, match=r"img_emb_1\.npy has no partner"):
        open_dataset("clip_retrieval", [str(folder)], {})
    with pytest.raises(InputError, match="has no folder 'text_emb'"):
        open_dataset("clip_retrieval", [str(folder)], {"array": "text_emb"})
    with pytest.raises(InputError, match="there is no folder"):
        open_dataset("datacomp", [str(tmp_path / "nothing")], {})


def write_semdedup(path, kind="similarity"):
    """Memmaps and clusters as the research code writes them."""
    path.mkdir()
    rows = RNG.standard_normal((50, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centroids = RNG.standard_normal((4, 6)).astype(np.float32)
    if kind == "similarity":
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    keys = np.array([f"{i:05d}/x.jpg" for i in range(50)], "S24")
    rows.tofile(path / "emb.npy")
    keys.tofile(path / "paths.npy")
    nearest = (rows @ centroids.T).argmax(axis=1)
    product = (rows * centroids[nearest]).sum(axis=1)
    distance = 1 - product / np.linalg.norm(centroids[nearest], axis=1)
    given = product if kind == "similarity" else ((rows - centroids[nearest]) ** 2).sum(axis=1)
    np.save(path / "kmeans_centroids.npy", centroids)
    np.save(path / "nearest_cent.npy", nearest)
    np.save(path / "dist_to_cent.npy", given.astype(np.float32))
    (path / "sorted_clusters").mkdir()
    for cluster in range(4):
        members = np.flatnonzero(nearest == cluster)
        members = members[np.argsort(-distance[members])]
        table = [(keys[i], i, distance[i], cluster) for i in members]
        np.save(
            path / "sorted_clusters" / f"cluster_{cluster}.npy", np.array(table) if table else np.array([])
        )
    return rows, keys, nearest, distance


MEMMAPS = {"embeddings": "emb.npy", "keys": "paths.npy", "shape": [50, 6], "key_type": "|S24"}


@pytest.mark.parametrize("kind", ["similarity", "squared_l2"])
def test_memmaps_of_semdedup_and_their_clusters(tmp_path, kind):
    rows, keys, nearest, distance = write_semdedup(tmp_path / "in", kind)
    dataset = open_dataset("semdedup", [str(tmp_path / "in")], {**MEMMAPS, "clusters": "."})
    found = read_all(dataset.parts, dataset.schema.names)
    assert found.column("key").to_pylist() == [key.decode() for key in keys]
    np.testing.assert_array_equal(np.array(found.column("embedding").to_pylist(), np.float32), rows)
    assert found.column("cluster_id").to_pylist() == nearest.tolist()
    np.testing.assert_allclose(found.column("distance_to_centroid").to_numpy(), distance, atol=1e-6)
    # The norms of the centroids tell as much where there are no embeddings.
    alone = open_dataset("semdedup", [str(tmp_path / "in")], {"clusters": str(tmp_path / "in")})
    assert read_all(alone.parts, ["distance_to_centroid"]) == found.select(["distance_to_centroid"])


def test_sorted_clusters_of_semdedup(tmp_path):
    rows, keys, nearest, distance = write_semdedup(tmp_path / "in")
    folder = str(tmp_path / "in")
    with pytest.raises(InputError, match="is the third column a distance or a similarity") as caught:
        open_dataset("semdedup", [folder], {"clusters": "sorted_clusters"})
    assert "input.options.distances" in caught.value.mend
    dataset = open_dataset("semdedup", [folder], {"clusters": "sorted_clusters", "distances": "distance"})
    found = {row["key"]: row for row in read_all(dataset.parts, dataset.schema.names).to_pylist()}
    assert sorted(found) == [key.decode() for key in keys]
    for number, key in enumerate(keys):
        row = found[key.decode()]
        assert row["cluster_id"] == nearest[number]
        assert row["distance_to_centroid"] == pytest.approx(distance[number], abs=1e-6)
    # With the memmap, rows bring their vectors, and show what the third column is.
    (tmp_path / "in" / "nearest_cent.npy").unlink()
    dataset = open_dataset("semdedup", [folder], {**MEMMAPS, "clusters": "."})
    found = {row["key"]: row for row in read_all(dataset.parts, dataset.schema.names).to_pylist()}
    for number, key in enumerate(keys):
        np.testing.assert_array_equal(np.float32(found[key.decode()]["embedding"]), rows[number])


def test_numbers_that_are_neither_are_refused():
    vectors, centroids = np.eye(3), np.ones((3, 3))
    with pytest.raises(InputError, match="neither similarities nor distances"):
        tell_kind(np.full(3, 17.0), vectors, centroids, "dist_to_cent.npy")
    np.testing.assert_allclose(to_distances(np.array([0.5]), "distance"), [0.5])


@pytest.mark.parametrize("bits", [True, False])
def test_clusters_of_curator(tmp_path, bits):
    values = RNG.standard_normal((30, 4)).astype(np.float16)
    for cluster in range(3):
        folder = tmp_path / f"centroid={cluster}"
        folder.mkdir()
        rows = values[10 * cluster : 10 * cluster + 10]
        lists = pa.array(rows.view(np.uint16).tolist(), pa.list_(pa.uint16()))
        if not bits:
            lists = pa.array(rows.astype(np.float32).tolist(), pa.list_(pa.float32()))
        table = {
            "id": range(10 * cluster, 10 * cluster + 10),
            "embeddings": lists,
            "cosine_dist_to_cent": [0.5] * 10,
        }
        pq.write_table(pa.table(table), folder / "a.parquet")
    dataset = open_dataset("curator", [str(tmp_path)], {})
    found = read_all(dataset.parts, dataset.schema.names).sort_by("id")
    assert dataset.schema.names == ["id", "embedding", "distance_to_centroid", "cluster_id"]
    np.testing.assert_array_equal(np.array(found.column("embedding").to_pylist()), values.astype(np.float32))
    assert found.column("cluster_id").to_pylist() == [i // 10 for i in range(30)]


@pytest.mark.parametrize("form", ["txt", "npy", "parquet"])
def test_a_matrix_and_its_keys(tmp_path, form):
    values = RNG.standard_normal((20, 3)).astype(np.float32)
    keys = [f"é{i}" for i in range(20)]
    np.save(tmp_path / "x.npy", values)
    path, options = tmp_path / f"keys.{form}", {}
    if form == "txt":
        path.write_text("\n".join(keys), encoding="utf-8")
    elif form == "npy":
        np.save(path, np.array(keys))
    else:
        pq.write_table(pa.table({"name": keys}), path)
        options = {"key_column": "name"}
    dataset = open_dataset("npy", [str(tmp_path / "x.npy")], {"keys": str(path), **options})
    found = read_all(dataset.parts, ["key", "embedding"])
    assert found.column("key").to_pylist() == keys
    np.testing.assert_array_equal(np.array(found.column("embedding").to_pylist(), np.float32), values)


@pytest.mark.parametrize(
    ("form", "options", "words"),
    [
        ("nothing", {}, "there is no format 'nothing'"),
        ("npy", {}, "input.options.keys is missing"),
        ("npy", {"keys": ["a", "b"]}, "names 2 files, input.path 1"),
        ("datacomp", {"shape": [1, 2]}, "input.options.shape does not go with input.format datacomp"),
        ("datacomp", {"arrray": "x"}, "did you mean 'array'"),
        ("semdedup", {}, "give input.options.embeddings and keys"),
        ("semdedup", {"embeddings": "e"}, "input.options.keys is missing"),
        ("semdedup", {"embeddings": "e", "keys": "k"}, "input.options.shape is missing"),
        ("semdedup", {"keys": "k", "clusters": "c"}, "input.options.embeddings is missing"),
        (
            "semdedup",
            {"embeddings": "e", "keys": "k", "shape": [1, 2], "key_type": "f4"},
            "is no type of texts",
        ),
    ],
)
def test_options_that_are_refused(form, options, words):
    with pytest.raises(ConfigError, match=words):
        make_format_options(form, options, ["x.npy"])


def test_a_range_of_rows_is_cut_where_files_allow_it(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1000, 4), np.float32))
    pq.write_table(pa.table({"uid": list(range(1000))}), tmp_path / "x.parquet", row_group_size=250)
    part = Part(
        (ArrayFile(find_npy(str(tmp_path / "x.npy")), "embedding"), find_table(str(tmp_path / "x.parquet")))
    )
    tasks = share_rows([part], 100, few_bytes=8000)
    assert tasks == [[Range(0, 0, 250), Range(0, 250, 500)], [Range(0, 500, 750), Range(0, 750, 1000)]]


def test_embeddings_of_another_type_are_no_bits(tmp_path):
    pq.write_table(pa.table({"id": [1], "embeddings": pa.array([b"abcd"])}), tmp_path / "a.parquet")
    assert open_dataset("curator", [str(tmp_path)], {}).schema.field("embedding").type == pa.binary()


def test_a_column_of_nulls_alone_is_of_the_type_that_other_files_have(tmp_path):
    folder = write_pairs(tmp_path / "in")
    for part, scores in enumerate([[None] * 4, [0.5] * 4, [None] * 4]):
        rows = {"image_path": ["a"] * 4, "score": scores, "none": [None] * 4}
        pq.write_table(pa.table(rows), folder / "metadata" / f"metadata_{part}.parquet")
    schema = open_dataset("clip_retrieval", [str(folder)], {}).schema
    assert (schema.field("score").type, schema.field("none").type) == (pa.float64(), pa.string())
