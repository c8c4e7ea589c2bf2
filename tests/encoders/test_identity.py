"""What identifies an encoder, and that nothing is loaded for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_stream, save_dinov2

from spark_dbp.config_embed import EmbedConfig
from spark_dbp.encoders import EncoderSettings, get_encoder, identify_encoder, open_encoder
from spark_dbp.errors import ConfigError


def test_identity_is_json_and_names_all(dinov2: Path):
    found = identify_encoder(
        EncoderSettings("images", str(dinov2), options={"pooling": "cls"}, device="cuda:1")
    )
    assert json.loads(json.dumps(found)) == found
    assert found["maker"] == "transformers" and found["revision"] is None and found["device"] == "cuda"
    assert len(found["weights_sha256"]) == len(found["preprocessing_sha256"]) == 64
    assert set(found["versions"]) == {"torch", "transformers", "tokenizers", "pillow"}


def test_other_weights_at_the_same_path(tmp_path: Path):
    settings = EncoderSettings("images", str(save_dinov2(tmp_path, 1)))
    before, loaded = identify_encoder(settings), get_encoder(settings)
    save_dinov2(tmp_path, 2)
    after = identify_encoder(settings)
    assert after["weights_sha256"] != before["weights_sha256"]
    assert after["preprocessing_sha256"] == before["preprocessing_sha256"]
    assert get_encoder(settings) is not loaded  # the new weights are loaded


def test_another_preprocessing(tmp_path: Path):
    settings = EncoderSettings("images", str(save_dinov2(tmp_path)))
    before = identify_encoder(settings)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.485", "0.5"))
    after = identify_encoder(settings)
    assert after["weights_sha256"] == before["weights_sha256"]
    assert after["preprocessing_sha256"] != before["preprocessing_sha256"]


def test_another_place_is_the_same(tmp_path: Path, dinov2: Path):
    copy = shutil.copytree(dinov2, tmp_path / "copy")
    (copy / "README.md").write_text("a model")
    os.utime(copy / "model.safetensors", (1, 1))
    first, second = (identify_encoder(EncoderSettings("images", str(path))) for path in (dinov2, copy))
    assert {**first, "encoder": ""} == {**second, "encoder": ""}


def test_source_and_files_of_a_class(tmp_path: Path, monkeypatch):
    module = tmp_path / "own_encoder.py"
    source = "class Own:\n    files = ['{}']\n    libraries = ('numpy',)\n    def __call__(self, x): ...\n"
    module.write_text(source.format(tmp_path / "w"))
    (tmp_path / "w").write_bytes(b"1")
    monkeypatch.syspath_prepend(tmp_path)
    settings = EncoderSettings("texts", "python:own_encoder.Own")
    first = identify_encoder(settings)
    (tmp_path / "w").write_bytes(b"22")
    second = identify_encoder(settings)
    module.write_text(module.read_text() + "# changed\n")
    third = identify_encoder(settings)
    assert first["weights_sha256"] != second["weights_sha256"] == third["weights_sha256"]
    assert first["preprocessing_sha256"] == second["preprocessing_sha256"] != third["preprocessing_sha256"]
    assert set(first["versions"]) == {"numpy"}


def test_nothing_is_loaded_for_it(dinov2: Path, bert: Path):
    code = (
        "import sys; from spark_dbp.encoders import *\n"
        f"identify_encoder(EncoderSettings('images', {str(dinov2)!r}))\n"
        f"identify_encoder(EncoderSettings('texts', {str(bert)!r}))\n"
        "identify_encoder(EncoderSettings('images', 'python:spark_dbp.encoders.packaged.EfficientNetLite0'))\n"
        "heavy = {'torch', 'transformers', 'timm', 'open_clip', 'PIL', 'pyspark'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_worker_with_other_weights_is_refused(tmp_path: Path, files: list):
    driver = EncoderSettings("images", str(save_dinov2(tmp_path / "a", 1)))
    worker = EncoderSettings("images", str(save_dinov2(tmp_path / "b", 2)))
    identity = identify_encoder(driver)
    run_stream(driver, files[:2], identity=identity)
    open_encoder(driver, identity=identity)
    with pytest.raises(ConfigError, match="weights on this worker are not those on the driver"):
        run_stream(worker, files[:2], identity=identity)
    with pytest.raises(ConfigError, match="weights on this worker"):
        open_encoder(worker, identity=identity)


def test_settings_of_the_configuration():
    config = EmbedConfig(
        images={"column": "jpg"}, device="cuda:1", options={"a": 1}, decode_threads=3, max_pixels=10
    )
    settings = EncoderSettings.from_config(config)
    assert settings == EncoderSettings(
        "images",
        "hf:facebook/dinov2-large",
        device="cuda:1",
        options={"a": 1},
        decode_threads=3,
        max_pixels=10,
    )


def test_a_model_of_the_hub_in_the_cache(tmp_path: Path, dinov2: Path, monkeypatch):
    """Its commit is its revision; a cache that was filled elsewhere serves without a network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--owner--name"
    shutil.copytree(dinov2, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, "main", commit):
        found = identify_encoder(EncoderSettings("images", "hf:owner/name", revision=revision))
        assert found["revision"] == commit
    assert open_encoder(EncoderSettings("images", "hf:owner/name"), identity=found).device == "cpu"
    with pytest.raises(ConfigError, match="hf download owner/name --revision v2"):
        identify_encoder(EncoderSettings("images", "hf:owner/name", revision="v2"))
