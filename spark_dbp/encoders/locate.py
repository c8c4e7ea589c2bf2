"""Find what an encoder is made of: its files, without loading them. Imports `errors` and what is beside it.

`identify_encoder` and `open_encoder` both begin here, so that what is loaded is what was identified.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spark_dbp.encoders.hub import fetch_model
from spark_dbp.encoders.open_clip_table import read_tag
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError

PREFIXES = ("hf", "timm", "open_clip", "onnx", "python")
_TOKENIZER = ("tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*", "*.model", "*.jinja")
_WORDS = ("tokenizer.json", "vocab*", "*.model", "tokenizer.model*")
_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
# In the order of the libraries' own preference.
_OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_TIMM = ("model.safetensors", "pytorch_model.bin")
_EXTERNAL_DATA = re.compile(rb"\n\x08location\x12(.)", re.DOTALL)


@dataclass(frozen=True)
class Located:
    """Where an encoder's parts are.

    Attributes
    ----------
    maker : str
        The library that loads it: ``transformers``, ``sentence_transformers``, ``timm``, ``open_clip``,
        ``onnxruntime`` or ``python``.
    model : str
        Name of an architecture, or ``module.Class``; empty where the directory says it.
    root : Path or None
        Directory of the model.
    weights, preprocessing : tuple of Path
        All files that are loaded.
    revision : str or None
        Commit of a model of the hub.
    facts : mapping
        What else decides on the embeddings, and lies in no file.
    """

    maker: str
    model: str = ""
    root: Path | None = None
    weights: tuple[Path, ...] = ()
    preprocessing: tuple[Path, ...] = ()
    revision: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def locate_encoder(settings: EncoderSettings) -> Located:
    """Find the files of an encoder; a model of a hub is downloaded.

    Raises
    ------
    ConfigError
    """
    prefix, _, rest = settings.encoder.partition(":")
    if prefix not in PREFIXES or not rest:
        located = _locate_path(settings)
    elif prefix == "hf":
        directory, commit = fetch_model(rest, settings.revision, settings.encoder)
        located = _locate_directory(directory, settings, commit)
    elif prefix == "timm":
        located = _locate_timm(rest, settings)
    elif prefix == "open_clip":
        located = _locate_open_clip(rest, settings)
    elif prefix == "onnx":
        located = _locate_onnx(Path(rest).expanduser(), settings)
    else:
        located = Located("python", rest)
    if settings.revision is not None and located.revision is None:
        raise ConfigError(
            f"embed.revision {settings.revision!r} means nothing to the encoder {settings.encoder}",
            mend="remove it: only models of the Hugging Face hub (hf:, timm:, open_clip:) have revisions",
        )
    if settings.weights is not None and (
        located.root is not None or located.maker not in ("timm", "open_clip")
    ):
        raise ConfigError(
            f"embed.weights {settings.weights!r} means nothing to the encoder {settings.encoder}",
            mend="remove it: embed.weights goes with timm:NAME and open_clip:MODEL",
        )
    return located


def _locate_path(settings: EncoderSettings) -> Located:
    text = settings.encoder.removeprefix("file://")
    path = Path(text).expanduser()
    if path.is_dir():
        return _locate_directory(path.absolute(), settings, None)
    if path.is_file():
        if path.suffix == ".onnx":
            return _locate_onnx(path.absolute(), settings)
        raise ConfigError(
            f"embed.encoder {text}: a file of this kind cannot be loaded by itself",
            mend="give an .onnx file, the directory of a model, or timm:NAME or open_clip:MODEL with "
            "embed.weights",
        )
    prefix, colon, _ = text.partition(":")
    if "://" in text:
        mend = "copy the model to a local directory, the same on driver and workers, and name that"
    elif colon and prefix in PREFIXES:
        mend = f"name a model after {prefix}:"
    elif colon:
        near = difflib.get_close_matches(prefix, PREFIXES, 1)
        mend = (
            f"write {near[0]}:"
            if near
            else "begin with hf:, timm:, open_clip:, onnx: or python:, or name a directory"
        )
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        mend = f"for a model of the Hugging Face hub write hf:{text}; a directory must exist on every machine"
    else:
        mend = "check the path: it must exist on the driver and on every worker"
    raise ConfigError(f"embed.encoder {text}: no such file or directory", mend=mend)


def _locate_directory(path: Path, settings: EncoderSettings, commit: str | None) -> Located:
    config = _read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if (path / "modules.json").is_file():
        return _locate_sentence_transformer(path, commit)
    if "architecture" in config and "model_type" not in config:
        weights = _choose_weights(path, _TIMM)
        return Located(
            "timm", root=path, weights=weights, preprocessing=(path / "config.json",), revision=commit
        )
    is_open_clip = (path / "open_clip_config.json").is_file()
    if "model_type" in config and not (is_open_clip and not _has_weights(path, _TRANSFORMERS)):
        files = {path / "config.json", *path.glob("preprocessor*.json"), *path.glob("processor*.json")}
        files.update(*(path.glob(pattern) for pattern in _TOKENIZER))
        weights = _choose_weights(path, _TRANSFORMERS)
        if settings.kind == "texts":
            _check_tokenizer(path)
        return Located("transformers", "", path, weights, tuple(sorted(files)), commit)
    if is_open_clip:
        return _locate_open_clip_directory(path, commit)
    files_onnx = sorted(path.glob("*.onnx"))
    if len(files_onnx) == 1:
        return _locate_onnx(files_onnx[0], settings)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise ConfigError(
        f"embed.encoder {path}: this directory is no model that can be recognised; it holds {held}",
        mend="it must hold config.json (transformers, timm), modules.json (sentence-transformers), "
        "open_clip_config.json, or one .onnx file, as save_pretrained or `hf download` writes it",
    )


def _locate_sentence_transformer(path: Path, commit: str | None) -> Located:
    modules = _read_json(path / "modules.json")
    files = {path / "modules.json", *path.glob("config*.json"), *path.glob("sentence_*.json")}
    weights: list[Path] = []
    for module in modules:
        kind = str(module.get("type", ""))
        if not kind.startswith("sentence_transformers."):
            raise ConfigError(
                f"embed.encoder {path}: modules.json asks for code of its own ({kind}), which is not run",
                mend="take a model that sentence-transformers itself knows, or wrap it as "
                "python:module.Class",
            )
        folder = path / str(module.get("path", ""))
        files |= {*folder.glob("*config*.json")}
        files.update(*(folder.glob(pattern) for pattern in _TOKENIZER))
        if kind.endswith(".Transformer"):
            _check_tokenizer(folder)
        if _has_weights(folder, _TRANSFORMERS):
            weights += _choose_weights(folder, _TRANSFORMERS)
    if not weights:
        _choose_weights(path, _TRANSFORMERS)
    return Located("sentence_transformers", "", path, tuple(weights), tuple(sorted(files)), commit)


def _check_tokenizer(path: Path) -> None:
    """Refuse a directory without one: transformers would make one that knows no word."""
    if not any(entry for pattern in _WORDS for entry in path.glob(pattern)):
        raise ConfigError(
            f"embed.encoder {path}: there is no tokenizer",
            mend="save it beside the model: tokenizer.save_pretrained(DIR) writes tokenizer.json",
        )


def _locate_timm(name: str, settings: EncoderSettings) -> Located:
    if settings.weights is not None:
        return Located("timm", name, weights=(_find_weights_file(settings),))
    repository = name.removeprefix("hf-hub:")
    if "/" not in repository:
        if "." not in repository:
            raise ConfigError(
                f"embed.encoder {settings.encoder}: the name does not say which weights",
                mend="write the full name, such as timm:resnet50.a1_in1k, or set embed.weights to a local "
                "file",
            )
        repository = f"timm/{repository}"
    directory, commit = fetch_model(repository, settings.revision, settings.encoder)
    return _locate_directory(directory, settings, commit)


def _locate_open_clip(name: str, settings: EncoderSettings) -> Located:
    if name.startswith("hf-hub:"):
        directory, commit = fetch_model(name.removeprefix("hf-hub:"), settings.revision, settings.encoder)
        return _locate_open_clip_directory(directory, commit)
    model, _, tag = name.partition("/")
    if settings.weights is not None:
        if tag:
            raise ConfigError(
                f"embed.encoder {settings.encoder} names pretrained weights, and embed.weights others",
                mend=f"write embed.encoder: open_clip:{model}, or remove embed.weights",
            )
        return Located("open_clip", model, weights=(_find_weights_file(settings),))
    if not tag:
        raise ConfigError(
            f"embed.encoder {settings.encoder}: the name does not say which weights",
            mend="write open_clip:MODEL/TAG, such as open_clip:ViT-B-32/laion2b_s34b_b79k, or set "
            "embed.weights",
        )
    facts = read_tag(model, tag)
    repository, _, file = str(facts["hf_hub"]).rpartition("/")
    directory, commit = fetch_model(repository, settings.revision, settings.encoder)
    weights = (
        (directory / file,)
        if (file and (directory / file).is_file())
        else _choose_weights(directory, _OPEN_CLIP)
    )
    return Located("open_clip", model, None, weights, (), commit, facts)


def _locate_open_clip_directory(path: Path, commit: str | None) -> Located:
    if not (path / "open_clip_config.json").is_file():
        raise ConfigError(
            f"embed.encoder: {path} has no open_clip_config.json",
            mend="take a repository that open_clip wrote, or write hf:NAME for one of transformers",
        )
    files = {path / "open_clip_config.json"}
    files.update(*(path.glob(pattern) for pattern in _TOKENIZER))
    return Located("open_clip", "", path, _choose_weights(path, _OPEN_CLIP), tuple(sorted(files)), commit)


def _locate_onnx(path: Path, settings: EncoderSettings) -> Located:
    if not path.is_file():
        raise ConfigError(
            f"embed.encoder {settings.encoder}: there is no file {path}",
            mend="check the path: it must exist on the driver and on every worker",
        )
    outside = [path.parent / name for name in find_external_data(path.read_bytes())]
    for part in outside:
        if part.parent.resolve() != path.parent.resolve() or not part.is_file():
            raise ConfigError(
                f"embed.encoder {path}: its weights lie in {part.name}, which is not beside it",
                mend="copy all files of the model into one directory",
            )
    names = (
        ["preprocessor_config.json"]
        if settings.kind == "images"
        else ["tokenizer.json", "tokenizer_config.json"]
    )
    beside = tuple(path.parent / name for name in names if (path.parent / name).is_file())
    return Located("onnxruntime", "", path.parent, (path, *outside), beside)


def find_external_data(model: bytes) -> list[str]:
    """Names of the files that an ONNX model keeps weights in, beside its own.

    They stand in the file as protobuf entries ``location: NAME`` (field 1 the key, field 2 the value).

    Examples
    --------
    >>> find_external_data(b"...\\n\\x08location\\x12\\x06w.data...")
    ['w.data']
    """
    found = set()
    for match in _EXTERNAL_DATA.finditer(model):
        length = match[1][0]
        if length < 128:  # longer names would need more bytes for their length
            found.add(model[match.end() : match.end() + length].decode("utf-8", "replace"))
    return sorted(found)


def _find_weights_file(settings: EncoderSettings) -> Path:
    path = Path(str(settings.weights)).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"embed.weights {path}: no such file",
            mend="check the path: it must exist on the driver and on every worker",
        )
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise ConfigError(
            f"embed.weights {path}: weights of this kind are not read",
            mend="give a .safetensors file, or a state dict that torch.load(weights_only=True) reads (.pt, "
            ".pth, .bin)",
        )
    return path


def _has_weights(path: Path, names: tuple[str, ...]) -> bool:
    return any((path / name).is_file() or (path / f"{name}.index.json").is_file() for name in names)


def _choose_weights(path: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """The first of these files that is there, or its parts."""
    for name in names:
        if (path / name).is_file():
            return (path / name,)
        index = path / f"{name}.index.json"
        if index.is_file():
            parts = sorted({path / str(part) for part in _read_json(index)["weight_map"].values()})
            lost = [part.name for part in parts if not part.is_file()]
            if lost:
                raise ConfigError(
                    f"embed.encoder {path}: the weights lack {lost[0]}",
                    mend="copy or download the whole directory again",
                )
            return (index, *parts)
    raise ConfigError(
        f"embed.encoder {path}: there are no weights",
        mend=f"it must hold {' or '.join(names[:2])}; pickled code, msgpack and h5 are not read",
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"embed.encoder: {path} is not JSON: {error}", mend="copy or download the directory again"
        ) from error
