"""What the tests of encoders share. They need torch and more: see `make test-encoders`."""

from __future__ import annotations

import io
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from spark_dbp.encoders import EncoderSettings, encode_stream, forget_encoders

ROOT = Path(__file__).resolve().parents[2]


def make_picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture, another for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode_picture(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def make_batch(items: list, kind: str, start: int = 0, **columns: list) -> pa.RecordBatch:
    item_type = pa.binary() if kind == "images" else pa.string()
    keys = [f"k{start + number}" for number in range(len(items))]
    return pa.record_batch({"key": keys, "item": pa.array(items, item_type), **columns})


def run_stream(settings: EncoderSettings, items: list, step: int = 7, **arguments: object) -> pa.Table:
    """All rows of a stream whose batches have `step` rows."""
    batches = (
        make_batch(items[start : start + step], settings.kind, start) for start in range(0, len(items), step)
    )
    return pa.Table.from_batches(list(encode_stream(batches, settings, cores=2, **arguments)))


def read_vectors(table: pa.Table) -> np.ndarray:
    """The vectors of rows that are all good, shape (n, dim)."""
    return np.stack([np.frombuffer(value, "<f4") for value in table["vector"].to_pylist()])


def normalize(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def no_loaded_encoder():
    yield
    forget_encoders()


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [make_picture(40 + 3 * seed, 30 + 5 * (seed % 3), seed) for seed in range(10)]


@pytest.fixture(scope="session")
def files(pictures: list[Image.Image]) -> list[bytes]:
    return [encode_picture(picture) for picture in pictures]


TEXTS = [
    "a library for sorting",
    "sort",
    "a very long text about " + "many things and " * 40,
    "fonts for the screen",
    "a game of chess",
    "ünïcödé and 漢字",
]


def save_tokenizer(directory: Path) -> None:
    """A tokenizer of words that knows what `TEXTS` say."""
    from transformers import BertTokenizerFast

    words = sorted({word for text in TEXTS for word in text.split()})
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *("##" + c for c in letters),
        *words,
    ]
    (directory / "words.txt").write_text("\n".join(dict.fromkeys(vocabulary)), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(directory / "words.txt"), model_max_length=32).save_pretrained(directory)
    (directory / "words.txt").unlink()


def save_dinov2(directory: Path, seed: int = 0) -> Path:
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(directory)
    BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(directory)
    return directory


def save_bert(directory: Path, seed: int = 0) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))
