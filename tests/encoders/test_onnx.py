"""ONNX files, made here with the package onnx."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TEXTS, normalize, read_vectors, run_stream
from onnx import TensorProto, helper, numpy_helper

from spark_dbp.encoders import EncoderSettings, identify_encoder, open_encoder, probe_encoder
from spark_dbp.errors import ConfigError

SIZE, DIM = 8, 5


def save_image_model(path: Path, outputs: tuple = ("embeddings",), **save: object) -> np.ndarray:
    """Pixels times a matrix; the second output is the first, twice as large."""
    weights = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], [outputs[0]]),
    ]
    nodes += [helper.make_node("Add", [outputs[0], outputs[0]], [name]) for name in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", DIM]) for name in outputs],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path), **save)
    return weights


def save_text_model(path: Path) -> np.ndarray:
    """One row of a table for each token: an output (n, tokens, dim)."""
    table = np.random.default_rng(1).normal(size=(300, DIM)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "input_ids"], ["last_hidden_state"])],
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", DIM])],
        [numpy_helper.from_array(table, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return table


OPTIONS = {"size": SIZE, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "resample": "bicubic"}


def expect(pictures: list, weights: np.ndarray) -> np.ndarray:
    small = [np.asarray(picture.resize((SIZE, SIZE), 3), np.float64) / 255 for picture in pictures]
    return np.stack([((x - 0.5) / 0.25).transpose(2, 0, 1).ravel() @ weights for x in small])


def test_images_with_options(tmp_path: Path, pictures: list, files: list):
    weights = save_image_model(tmp_path / "m.onnx")
    for name in (tmp_path / "m.onnx", f"onnx:{tmp_path / 'm.onnx'}", tmp_path):
        settings = EncoderSettings("images", str(name), options=OPTIONS, batch_size=3)
        table = run_stream(settings, files)
        assert np.abs(read_vectors(table) - normalize(expect(pictures, weights))).max() < 1e-5
    assert probe_encoder(settings) == {"dimension": DIM, "device": "cpu", "dtype": "float32"}


def test_images_with_a_processor_beside_the_file(tmp_path: Path, pictures: list, files: list):
    weights = save_image_model(tmp_path / "m.onnx")
    told = {
        "size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    told |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    table = run_stream(EncoderSettings("images", str(tmp_path / "m.onnx")), files)
    assert np.abs(read_vectors(table) - normalize(expect(pictures, weights))).max() < 1e-5


def test_texts(tmp_path: Path, bert: Path):
    from tokenizers import Tokenizer

    table = save_text_model(tmp_path / "m.onnx")
    shutil.copy(bert / "tokenizer.json", tmp_path)
    shutil.copy(bert / "tokenizer_config.json", tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(32)
    expected = np.stack([table[tokenizer.encode(text).ids].mean(0) for text in TEXTS])
    found = run_stream(EncoderSettings("texts", str(tmp_path / "m.onnx"), batch_size=3), TEXTS)
    assert np.abs(read_vectors(found) - normalize(expected)).max() < 1e-5


def test_outputs(tmp_path: Path, files: list):
    save_image_model(tmp_path / "m.onnx", ("first", "second"))
    settings = EncoderSettings("images", str(tmp_path / "m.onnx"), options=OPTIONS)
    with pytest.raises(ConfigError, match=r"several outputs: first, second[\s\S]*embed\.options\.output"):
        open_encoder(settings)
    named = EncoderSettings("images", settings.encoder, options={**OPTIONS, "output": "second"})
    assert run_stream(named, files)["problem"].null_count == len(files)
    wrong = EncoderSettings("images", settings.encoder, options={**OPTIONS, "output": "third"})
    with pytest.raises(ConfigError, match="its outputs are: first, second"):
        open_encoder(wrong)


def test_weights_beside_the_file_are_part_of_the_identity(tmp_path: Path, pictures: list, files: list):
    arguments = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    weights = save_image_model(tmp_path / "m.onnx", **arguments)
    settings = EncoderSettings("images", str(tmp_path / "m.onnx"), options=OPTIONS)
    table = run_stream(settings, files)
    assert np.abs(read_vectors(table) - normalize(expect(pictures, weights))).max() < 1e-5
    before = identify_encoder(settings)
    content = bytearray((tmp_path / "w.data").read_bytes())
    content[0] ^= 1
    (tmp_path / "w.data").write_bytes(content)
    assert identify_encoder(settings)["weights_sha256"] != before["weights_sha256"]
    (tmp_path / "w.data").unlink()
    with pytest.raises(ConfigError, match=r"w\.data, which is not beside it"):
        identify_encoder(settings)


def test_what_is_refused(tmp_path: Path, bert: Path):
    save_image_model(tmp_path / "m.onnx")
    path = str(tmp_path / "m.onnx")

    def refuse(settings: EncoderSettings, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            probe_encoder(settings)

    refuse(EncoderSettings("images", path), "nothing says how images become pixels")
    refuse(EncoderSettings("images", path, options={**OPTIONS, "mean": 3}), "size, mean|size \\(pixels")
    refuse(EncoderSettings("texts", path), "takes pixel_values")
    refuse(EncoderSettings("images", path, options=OPTIONS, dtype="bfloat16"), "embed.dtype")
    refuse(EncoderSettings("images", path, options=OPTIONS, device="cuda"), "embed.device is cuda")
    save_text_model(tmp_path / "t.onnx")
    refuse(EncoderSettings("texts", str(tmp_path / "t.onnx")), "no tokenizer.json beside")
    refuse(EncoderSettings("images", str(tmp_path / "t.onnx"), options=OPTIONS), "one batch of images")
    refuse(EncoderSettings("texts", path, options={"size": 3}), "embed.options.size")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    refuse(EncoderSettings("images", path, options=OPTIONS), "onnxruntime cannot load")
