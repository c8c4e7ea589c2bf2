"""Each kind of encoder against direct inference with its own library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TEXTS, make_picture, normalize, read_vectors, run_stream, save_tokenizer

from spark_dbp.encoders import EncoderSettings, get_encoder, identify_encoder, open_encoder, probe_encoder


def encode_pictures(settings: EncoderSettings, pictures: list) -> np.ndarray:
    encoder = open_encoder(settings)
    return encoder.encode(np.stack([encoder.prepare(picture) for picture in pictures]))


def check_stream(settings: EncoderSettings, items: list, expected: np.ndarray) -> None:
    table = run_stream(settings, items)
    assert table["problem"].null_count == len(items)
    assert set(table["dimension"].to_pylist()) == {expected.shape[1]}
    assert np.abs(read_vectors(table) - normalize(expected)).max() < 1e-5


def test_dinov2(dinov2: Path, pictures: list, files: list):
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(dinov2, backend="pil")
    model = AutoModel.from_pretrained(dinov2).eval()
    with torch.no_grad():
        output = model(**processor(images=pictures, return_tensors="pt"))
    settings = EncoderSettings("images", str(dinov2), batch_size=4)
    expected = output.last_hidden_state[:, 0].numpy()
    assert np.abs(encode_pictures(settings, pictures) - expected).max() < 1e-5
    check_stream(settings, files, expected)
    assert probe_encoder(settings) == {"dimension": 32, "device": "cpu", "dtype": "float32"}


def test_pictures_that_look_like_channels_first(dinov2: Path):
    """Of 1 or 3 pixels height or width: their arrays have 1 or 3 in the place of channels."""
    settings = EncoderSettings("images", str(dinov2))
    pictures = [make_picture(*size) for size in [(1, 1), (3, 3), (5, 3), (3, 7), (1, 4), (9, 1)]]
    assert np.isfinite(encode_pictures(settings, pictures)).all()
    large = [picture.resize((picture.width * 32, picture.height * 32), 0) for picture in pictures]
    for small, big in zip(pictures[:2], large, strict=False):
        assert open_encoder(settings).prepare(small).shape == open_encoder(settings).prepare(big).shape


def test_bfloat16(dinov2: Path, pictures: list):
    exact = encode_pictures(EncoderSettings("images", str(dinov2)), pictures)
    settings = EncoderSettings("images", str(dinov2), dtype="bfloat16")
    assert probe_encoder(settings)["dtype"] == "bfloat16"
    near = encode_pictures(settings, pictures)
    assert near.dtype == np.float32
    assert (normalize(exact) * normalize(near)).sum(1).min() > 0.999


def test_convnet(tmp_path: Path, pictures: list, files: list):
    from transformers import ConvNextConfig, ConvNextImageProcessor, ConvNextModel

    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])).eval()
    model.save_pretrained(tmp_path)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(tmp_path)
    settings = EncoderSettings("images", str(tmp_path))
    encoder = open_encoder(settings)
    pixels = torch.from_numpy(np.stack([encoder.prepare(picture) for picture in pictures]))
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output.numpy()
    assert expected.shape == (len(pictures), 16)
    check_stream(settings, files, expected)


def test_model_without_cls_token(tmp_path: Path, pictures: list):
    from transformers import SwinConfig, SwinModel, ViTImageProcessor

    config = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    model = SwinModel(config).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    settings = EncoderSettings("images", str(tmp_path))
    encoder = open_encoder(settings)
    pixels = np.stack([encoder.prepare(picture) for picture in pictures])
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
    assert np.abs(encoder.encode(pixels) - expected).max() < 1e-5
    first = open_encoder(EncoderSettings("images", str(tmp_path), options={"pooling": "cls"}))
    assert np.abs(first.encode(pixels) - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_both_towers(kind: str, tmp_path: Path, pictures: list, files: list):
    import transformers

    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 200}
    text |= {
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision | {"intermediate_size": 32}
    )
    model = getattr(transformers, f"{name}Model")(config).eval()
    model.save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    processor = getattr(transformers, f"{name}ImageProcessor")(size=size, crop_size=size)
    processor.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)

    images = EncoderSettings("images", str(tmp_path))
    encoder = open_encoder(images)
    pixels = torch.from_numpy(np.stack([encoder.prepare(picture) for picture in pictures]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    padding = "max_length" if kind == "siglip" else True
    tokens = tokenizer(TEXTS, padding=padding, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels)
        read = model.get_text_features(**tokens)
    seen, read = (getattr(found, "pooler_output", found).numpy() for found in (seen, read))
    check_stream(images, files, seen)
    check_stream(EncoderSettings("texts", str(tmp_path)), TEXTS, read)
    assert seen.shape[1] == read.shape[1]


def test_bert(bert: Path):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, truncation=True, max_length=32, return_tensors="pt"))
        expected.append(hidden.last_hidden_state[0].mean(0).numpy())
    check_stream(EncoderSettings("texts", str(bert), batch_size=2), TEXTS, np.stack(expected))
    first = EncoderSettings(
        "texts", str(bert), options={"pooling": "cls", "max_length": 8, "prompt": "a sort "}
    )
    assert run_stream(first, TEXTS)["problem"].null_count == len(TEXTS)


def test_roberta_has_fewer_positions_than_it_says(tmp_path: Path, bert: Path):
    from transformers import RobertaConfig, RobertaModel

    shutil.copytree(bert, tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    settings["model_max_length"] = int(1e30)
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    config = RobertaConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=26, pad_token_id=0,
    )  # fmt: skip
    RobertaModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "m")
    table = run_stream(EncoderSettings("texts", str(tmp_path / "m")), TEXTS)
    assert table["problem"].null_count == len(TEXTS)


def test_encoder_of_a_model_with_a_decoder(tmp_path: Path, bert: Path):
    from transformers import T5Config, T5Model

    shutil.copytree(bert, tmp_path / "m")
    config = T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path / "m")
    table = run_stream(EncoderSettings("texts", str(tmp_path / "m")), TEXTS)
    assert table["problem"].null_count == len(TEXTS)


def test_weights_in_parts(tmp_path: Path, dinov2: Path, pictures: list):
    from transformers import AutoModel

    AutoModel.from_pretrained(dinov2).save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(dinov2 / "preprocessor_config.json", tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    settings = EncoderSettings("images", str(tmp_path))
    expected = encode_pictures(EncoderSettings("images", str(dinov2)), pictures)
    assert np.array_equal(encode_pictures(settings, pictures), expected)
    before = identify_encoder(settings)
    part = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    assert identify_encoder(settings)["weights_sha256"] != before["weights_sha256"]


def test_state_dict_without_safetensors(tmp_path: Path, dinov2: Path, pictures: list):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(dinov2)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(dinov2 / name, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    expected = encode_pictures(EncoderSettings("images", str(dinov2)), pictures)
    assert np.array_equal(encode_pictures(EncoderSettings("images", str(tmp_path)), pictures), expected)


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory):
    """Weights of a small model, as a state dict, as safetensors, and as timm's own directory."""
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(3)
    model = timm.create_model("test_vit", pretrained=False).eval()
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.pth")
    timm.models.save_for_hf(
        model, folder / "dir", model_config={"num_classes": 1000}, safe_serialization=True
    )
    return folder, model


@pytest.mark.parametrize("form", ["weights.safetensors", "weights.pth", "dir"])
def test_timm(form: str, tiny_timm, pictures: list, files: list):
    import timm

    folder, model = tiny_timm
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        pixels = torch.stack([transform(picture) for picture in pictures])
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    if form == "dir":
        settings = EncoderSettings("images", str(folder / "dir"))
    else:
        settings = EncoderSettings("images", "timm:test_vit", weights=str(folder / form))
    check_stream(settings, files, expected)
    assert probe_encoder(settings)["dimension"] == expected.shape[1]


def test_timm_weights_of_other_classes(tmp_path: Path, pictures: list):
    import timm

    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "w.pth")
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "none.pth")
    for name, number in [("w.pth", 7), ("none.pth", 0)]:
        settings = EncoderSettings(
            "images", "timm:test_vit", weights=str(tmp_path / name), options={"num_classes": number}
        )
        assert encode_pictures(settings, pictures).shape == (len(pictures), 64)


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory):
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    torch.manual_seed(4)
    model = open_clip.CLIP(
        **{**config, "vision_cfg": config["vision_cfg"], "text_cfg": config["text_cfg"]}
    ).eval()
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.3, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(
        {k: v.contiguous().clone() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder, model


def test_open_clip_directory(tiny_open_clip, pictures: list, files: list):
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    folder, model = tiny_open_clip
    told = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
    transform = image_transform_v2(PreprocessCfg(size=32, **told), is_train=False)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(picture) for picture in pictures])).numpy()
        read = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS)).numpy()
    check_stream(EncoderSettings("images", str(folder)), files, seen)
    check_stream(EncoderSettings("texts", str(folder)), TEXTS, read)


def test_open_clip_by_name_with_local_weights(tmp_path: Path, pictures: list):
    """One of the smallest models that open_clip has by name."""
    import open_clip

    torch.manual_seed(5)
    name = "ViT-S-32-alt"
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    settings = EncoderSettings("images", f"open_clip:{name}", weights=str(tmp_path / "w.pt"))
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(p) for p in pictures[:3]])).numpy()
    assert np.abs(encode_pictures(settings, pictures[:3]) - expected).max() < 1e-5


def test_sentence_transformer(tmp_path: Path, bert: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    words = Transformer(str(bert), max_seq_length=16)
    torch.manual_seed(6)
    model = SentenceTransformer(modules=[words, Pooling(32), Dense(32, 12)], device="cpu")
    model.save(str(tmp_path))
    assert (tmp_path / "modules.json").is_file()
    expected = model.encode(TEXTS, batch_size=1)
    settings = EncoderSettings("texts", str(tmp_path), batch_size=3)
    check_stream(settings, TEXTS, expected)
    identity = identify_encoder(settings)
    dense = next(tmp_path.glob("*Dense/model.safetensors"))
    dense.write_bytes(dense.read_bytes()[:-1] + b"\1")
    assert identify_encoder(settings)["weights_sha256"] != identity["weights_sha256"]


def test_one_model_is_loaded_once(dinov2: Path, files: list):
    settings = EncoderSettings("images", str(dinov2))
    first = get_encoder(settings)
    run_stream(settings, files)
    assert get_encoder(EncoderSettings("images", str(dinov2))) is first
    assert get_encoder(EncoderSettings("images", str(dinov2), batch_size=2)) is not first
