"""Encoders that cannot be: each is refused by name, with what mends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, save_bert

from spark_dbp.encoders import EncoderSettings, identify_encoder, open_encoder, probe_encoder
from spark_dbp.errors import ConfigError


def refuse(settings: EncoderSettings, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        identify_encoder(settings)
        probe_encoder(settings)
    text = str(caught.value)
    assert "to mend it: " in text
    for word in words:
        assert word in text, text
    return text


def images(encoder: object, **more: object) -> EncoderSettings:
    return EncoderSettings("images", str(encoder), **more)


def texts(encoder: object, **more: object) -> EncoderSettings:
    return EncoderSettings("texts", str(encoder), **more)


def test_paths(tmp_path: Path):
    refuse(images(tmp_path / "none"), "embed.encoder", str(tmp_path / "none"), "no such file")
    refuse(images("facebook/dinov2-large"), "write hf:facebook/dinov2-large")
    refuse(images("s3://bucket/model"), "local directory")
    refuse(images("tim:resnet50"), "write timm:")
    refuse(images("hf:"), "name a model after hf:")
    refuse(images("gs:x"), "begin with hf:")
    refuse(images(tmp_path), "no model that can be recognised", "config.json")
    (tmp_path / "model.pkl").write_bytes(b"")
    refuse(images(tmp_path / "model.pkl"), ".onnx")
    refuse(images(f"onnx:{tmp_path}/none.onnx"), "no file")


def test_incomplete_directories(tmp_path: Path, dinov2: Path, bert: Path):
    folder = shutil.copytree(dinov2, tmp_path / "a")
    (folder / "preprocessor_config.json").unlink()
    refuse(images(folder), "image processor", "save_pretrained")
    (folder / "model.safetensors").unlink()
    refuse(images(folder), "no weights", "model.safetensors")
    (folder / "flax_model.msgpack").write_bytes(b"")
    refuse(images(folder), "no weights")
    (folder / "config.json").write_text("{")
    refuse(images(folder), "not JSON")
    folder = shutil.copytree(bert, tmp_path / "b")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refuse(texts(folder), "tokenizer")


def test_damaged_weights(tmp_path: Path, dinov2: Path):
    folder = shutil.copytree(dinov2, tmp_path / "a")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refuse(images(folder), "cannot load")


def test_weights_that_lack_a_part(tmp_path: Path, dinov2: Path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(dinov2, tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refuse(images(folder), "lack layernorm.weight", "random")


def test_no_pickle_is_read(tmp_path: Path, dinov2: Path):
    """Code in a pickle does not run, whoever reads the weights."""
    import os

    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = shutil.copytree(dinov2, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Code()}, folder / "pytorch_model.bin")
    refuse(images(folder), "cannot load")
    torch.save({"x": Code()}, tmp_path / "w.pth")
    refuse(images("timm:test_vit", weights=str(tmp_path / "w.pth")), "timm cannot")
    refuse(images("open_clip:ViT-S-32-alt", weights=str(tmp_path / "w.pth")), "open_clip cannot")
    assert not (tmp_path / "ran").exists()


def test_code_of_a_repository_does_not_run(tmp_path: Path, dinov2: Path, bert: Path):
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).mkdir()\nclass Model: pass\nclass Config: pass\n"
    folder = shutil.copytree(dinov2, tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "unheard_of",
        "auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(code)
    refuse(images(folder), "needs code from its repository")

    folder = shutil.copytree(bert, tmp_path / "b")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "code.Model"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "code.py").write_text(code)
    refuse(texts(folder), "code.Model", "not run")
    assert not (tmp_path / "ran").exists()


def test_of_the_other_kind(dinov2: Path, bert: Path, tmp_path: Path):
    refuse(texts(dinov2), "tokenizer")
    refuse(images(bert), "image processor")
    folder = shutil.copytree(bert, tmp_path / "a")
    shutil.copy(dinov2 / "preprocessor_config.json", folder)
    refuse(images(folder), "takes input_ids, not images")
    refuse(texts("timm:test_vit.r160_in1k", weights=None), "timm/test_vit.r160_in1k")


def test_settings_that_mean_nothing(dinov2: Path, bert: Path, tmp_path: Path):
    refuse(images(dinov2, revision="main"), "embed.revision", "remove it")
    refuse(images(dinov2, weights=str(dinov2 / "model.safetensors")), "embed.weights", "remove it")
    refuse(images(dinov2, options={"pool": "cls"}), "embed.options.pool", "pooling")
    refuse(images(dinov2, options={"pooling": "max"}), "embed.options.pooling", "mean")
    refuse(texts(bert, options={"output": "x"}), "embed.options.output")
    refuse(images("timm:resnet18"), "which weights", "resnet50.a1_in1k")
    refuse(images("open_clip:ViT-B-32"), "which weights", "MODEL/TAG")
    refuse(images("open_clip:ViT-B-32/openai", weights="x"), "pretrained weights")
    refuse(images("timm:test_vit", weights=str(tmp_path / "w.pth")), "embed.weights", "no such file")
    (tmp_path / "w.npz").write_bytes(b"")
    refuse(images("timm:test_vit", weights=str(tmp_path / "w.npz")), "not read")


def test_names_that_libraries_do_not_know(tmp_path: Path):
    torch.save({}, tmp_path / "w.pth")
    refuse(images("timm:no_such", weights=str(tmp_path / "w.pth")), "no_such", "timm.list_models")
    refuse(images("open_clip:no-such", weights=str(tmp_path / "w.pth")), "no-such")
    refuse(images("open_clip:ViT-B-32/no_such"), "the tags of ViT-B-32 are", "laion2b_s34b_b79k")


def test_weights_of_another_model(tmp_path: Path):
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    refuse(images("timm:test_vit", weights=str(tmp_path / "w.pth")), "timm cannot make a model 'test_vit'")


def test_hub_that_cannot_be_reached():
    for name, kind in [("hf:facebook/dinov2-large", "images"), ("timm:resnet50.a1_in1k", "images")]:
        refuse(
            EncoderSettings(kind, name, revision="v1"),
            "hf download",
            "--revision v1 --local-dir DIR",
            "embed.encoder",
        )
    refuse(
        images("open_clip:ViT-B-32/laion2b_s34b_b79k"), "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    )
    refuse(images("open_clip:hf-hub:laion/x"), "hf download laion/x")
    refuse(images("hf:not a name"), "not a name")


def test_devices(dinov2: Path, bert: Path):
    if not torch.cuda.is_available():
        for device in ("cuda", "cuda:3"):
            refuse(images(dinov2, device=device), f"embed.device is {device}", "embed.device: cpu")
        refuse(images("python:sample_encoders.Means", device="cuda"), "embed.device is cuda")
    refuse(images(dinov2, device="mps"), "mps")
    refuse(images(dinov2, device="cpu", dtype="float16"), "embed.dtype is float16", "float32")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OneRowLess", "returned 1 rows for 2 items"),
        ("ThreeAxes", "shape (2, 3, 3)"),
        ("AList", "returned a list"),
        ("Words", "returned an array of <U1"),
        ("NotANumber", "NaN or Inf"),
        ("Fails", "ZeroDivisionError: by nothing"),
        ("Shapes", "different shapes"),
        ("NotCallable", "cannot be called"),
        ("not_a_class", "has no class not_a_class"),
        ("NoSuchClass", "has no class NoSuchClass"),
        ("WithFile", "cannot be made with embed.options"),
    ],
)
def test_classes(name: str, message: str):
    refuse(images(f"python:sample_encoders.{name}"), message, f"python:sample_encoders.{name}")


def test_names_of_classes(tmp_path: Path):
    refuse(texts("python:Alone"), "names no class")
    refuse(texts("python:no_such_module.Class"), "cannot be imported")
    refuse(texts("python:__main__.Class"), "notebook")
    lost = texts("python:sample_encoders.WithFile", options={"path": str(tmp_path / "none")})
    refuse(lost, str(tmp_path / "none"), "cannot be read")


def test_missing_libraries(tmp_path: Path):
    """What to install is said, by the driver that lacks it too."""
    folder = save_bert(tmp_path)
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from spark_dbp.encoders import EncoderSettings, open_encoder\n"
        f"try: open_encoder(EncoderSettings('texts', {str(folder)!r}, device='cpu'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install 'spark-dbp[encoders]'" in done.stdout


def test_models_that_hide_patches_at_random(tmp_path: Path, dinov2: Path):
    from transformers import ViTMAEConfig, ViTMAEModel

    config = ViTMAEConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=28,
        patch_size=14,
    )
    ViTMAEModel(config).save_pretrained(tmp_path)
    shutil.copy(dinov2 / "preprocessor_config.json", tmp_path)
    refuse(images(tmp_path), "at random")


def test_a_good_one_is_opened(dinov2: Path):
    assert open_encoder(images(dinov2)).device == "cpu"
