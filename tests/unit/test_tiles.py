"""Tiles on disk: what is written is read back, whatever tiles share a row group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_embeddings

from spark_dbp.engine import tiles
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import to_binary_rows


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize(("group_bytes", "share"), [(16 << 20, True), (0, False)])
def test_tiles_are_read_back(tmp_path, monkeypatch, batch_rows, group_bytes, share):
    monkeypatch.setattr(tiles, "_GROUP_BYTES", group_bytes)
    vectors, _ = normalize_rows(make_embeddings(60, 8, 3))
    clusters = np.repeat(np.arange(5, dtype=np.int32), [1, 20, 3, 35, 1])
    ranks = np.concatenate([np.arange(n) for n in (1, 20, 3, 35, 1)]).astype(np.int32)
    table = pa.table(
        {
            "cluster_id": clusters,
            "tile": ranks // np.int32(12),
            "rank": ranks + 1,
            "key": [f"k{i}" for i in range(60)],
            "vector": to_binary_rows(vectors),
        }
    )
    written = tiles._write_file(iter(table.to_batches(batch_rows)), str(tmp_path))
    refs = [tiles.TileRef(*row) for row in written]
    assert [ref.n_items for ref in refs] == [1, 12, 8, 3, 12, 12, 11, 1]
    (file,) = tmp_path.iterdir()
    assert pq.ParquetFile(file).num_row_groups == (1 if share else len(refs))
    reader = tiles.TileReader(str(tmp_path), 8)
    for turn in (refs, refs[::-1]):
        for ref in turn:
            rows = np.flatnonzero((clusters == ref.cluster_id) & (ranks // 12 == ref.tile))
            assert (reader.matrix(ref) == vectors[rows]).all()
            assert reader.keys(ref).to_pylist() == [f"k{i}" for i in rows]


def test_long_keys_count_in_a_row_group(tmp_path, monkeypatch):
    """Reading a tile reads its whole row group, keys included."""
    monkeypatch.setattr(tiles, "_GROUP_BYTES", 5000)
    ranks = np.zeros(20, dtype=np.int32)
    vectors = to_binary_rows(normalize_rows(make_embeddings(20, 8, 3))[0])
    keys = [f"{i:01000d}" for i in range(20)]
    columns = {"cluster_id": np.arange(20, dtype=np.int32), "tile": ranks, "rank": ranks + 1}
    table = pa.table({**columns, "key": keys, "vector": vectors})
    assert len(tiles._write_file(iter(table.to_batches()), str(tmp_path))) == 20
    (file,) = tmp_path.iterdir()
    assert pq.ParquetFile(file).num_row_groups == 5  # four keys each
