"""Embeddings as other programs write them, for tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import make_embeddings

N, DIM = 300, 8
EMBEDDINGS = make_embeddings(N, DIM, 5).astype(np.float16)
KEYS = [f"{i * 7919 % 1009:032x}" for i in range(N)]
CUTS = [(0, 120), (120, 121), (121, N)]


def write_datacomp(path):
    (path / "small").mkdir(parents=True)
    for number, (start, stop) in enumerate(CUTS):
        rows = {
            "uid": KEYS[start:stop],
            "text": ["a text"] * (stop - start),
            "size": list(range(start, stop)),
        }
        pq.write_table(pa.table(rows), path / "small" / f"{number}.parquet", row_group_size=50)
        np.savez(
            path / "small" / f"{number}.npz",
            l14_img=EMBEDDINGS[start:stop],
            b32_img=np.ones((stop - start, 2)),
        )
    return {"format": "datacomp", "path": str(path)}


def write_clip_retrieval(path):
    for folder in ("img_emb", "metadata"):
        (path / folder).mkdir(parents=True)
    for number, (start, stop) in enumerate(CUTS):
        np.save(path / "img_emb" / f"img_emb_{number}.npy", EMBEDDINGS[start:stop])
        rows = {"image_path": KEYS[start:stop], "size": list(range(start, stop))}
        pq.write_table(pa.table(rows), path / "metadata" / f"metadata_{number}.parquet")
    return {"format": "clip_retrieval", "path": str(path)}


def write_matrix(path):
    path.mkdir()
    np.save(path / "x.npy", EMBEDDINGS)
    (path / "keys.txt").write_text("\n".join(KEYS))
    return {"format": "npy", "path": str(path / "x.npy"), "options": {"keys": str(path / "keys.txt")}}


FORMATS = {"datacomp": write_datacomp, "clip_retrieval": write_clip_retrieval, "npy": write_matrix}
