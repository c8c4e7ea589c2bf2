"""The real pretrained models through the whole job: neighbours among the vectors are of one kind."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from conftest import ROOT

from spark_dbp import Run, RunConfig, demo_data, run, verify
from spark_dbp.encoders.packaged import unpack_minilm

SHARDS = ROOT / "notebooks" / "data" / "cifar10-part"


def measure_neighbours(done: Run, labels: Mapping[str, str]) -> tuple[float, float]:
    """Share of the samples whose nearest neighbour by cosine has their label, and what chance would give."""
    table = pq.read_table(done.table_path("embeddings"))
    assert sorted(table["key"].to_pylist()) == sorted(labels)
    vectors = np.stack([np.frombuffer(value, "<f4") for value in table["vector"].to_pylist()])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    own = np.array([labels[key] for key in table["key"].to_pylist()])
    n, counts = len(own), Counter(own).values()
    chance = sum(count * (count - 1) for count in counts) / (n * (n - 1))
    return float((own[cosines.argmax(1)] == own).mean()), chance


def test_photographs_of_one_label_are_neighbours(spark, tmp_path: Path):
    labels = {}
    for path in sorted(SHARDS.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    labels[member.name.split(".")[0]] = json.load(tar.extractfile(member))["label"]
    assert sorted(Counter(labels.values()).values()) == [40] * 10
    values = {
        "embed": {
            "images": {"webdataset": str(SHARDS)},
            "encoder": "python:spark_dbp.encoders.packaged.EfficientNetLite0",
        },
        "output": {"path": str(tmp_path / "run")},
        "cluster": {"n_clusters": 20},
        "prune": {"keep_ratio": 0.3},
    }
    done = run(RunConfig.from_dict(values), spark)
    assert done.document["accounting"]["kept"] == 120
    assert verify(done, spark)
    share, chance = measure_neighbours(done, labels)
    assert chance < 0.1
    assert share > 0.45  # measured: 0.56, where chance gives 0.10


def test_docstrings_of_one_package_are_neighbours(spark, tmp_path: Path):
    texts = demo_data.write_docstrings(str(tmp_path / "in"))
    values = {
        "input": {"path": texts},
        "embed": {"texts": {"column": "text"}, "encoder": str(unpack_minilm(tmp_path))},
        "output": {"path": str(tmp_path / "run")},
        "cluster": {"n_clusters": 40},
        "prune": {"keep_ratio": 0.3},
    }
    done = run(RunConfig.from_dict(values), spark)
    assert done.document["accounting"]["kept"] == 450
    assert verify(done, spark)
    share, chance = measure_neighbours(done, demo_data.read_packages(str(tmp_path / "in")))
    assert chance < 0.21
    assert share > 0.6  # measured: 0.70, where chance gives 0.20
