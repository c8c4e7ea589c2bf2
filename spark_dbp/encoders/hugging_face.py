"""Models of transformers: images and texts.

Imports numpy and `errors`; torch and transformers inside functions.

Images: the CLS token after the last norm (DINOv2, ViT ...), the pooled output of models without one
(ConvNeXt, Swin ...), the image tower of CLIP and its kin. Texts: the mean over the tokens, or the text tower.
Texts that are longer than the model takes are truncated.

Options: ``pooling`` (cls, mean or pooler), and for texts ``max_length`` (tokens) and ``prompt`` (written
before each text).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spark_dbp.encoders.devices import default_batch_size, use_dtype
from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.locate import Located
from spark_dbp.encoders.protocol import FloatArray, check_options
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError

_POOLINGS = ("cls", "mean", "pooler")
# Their embedding of a position begins after that of padding.
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer")


def open_transformers(settings: EncoderSettings, located: Located, device: str, dtype: str) -> Any:
    """Load a directory that `save_pretrained` wrote.

    Raises
    ------
    ConfigError
    """
    if settings.kind == "images":
        return ImageModel(settings, located, device, dtype)
    return TextModel(settings, located, device, dtype)


def _load_model(settings: EncoderSettings, root: Path, weights: tuple[Path, ...], device: str) -> Any:
    """The model, on the device; all of its weights are those of the files."""
    torch, transformers = load_library("torch"), load_library("transformers")
    is_safe = any(path.suffix == ".safetensors" for path in weights)
    try:
        with _be_quiet(transformers):
            model, report = transformers.AutoModel.from_pretrained(
                str(root),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=is_safe,
                weights_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:  # of transformers, torch, safetensors and pickle's reader
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"embed.encoder {settings.encoder} needs code from its repository, which is not run",
                mend="take a model that transformers itself knows, or wrap it as python:module.Class",
            ) from error
        raise ConfigError(
            f"embed.encoder {settings.encoder}: transformers cannot load {root}: {error}",
            mend="check that it loads with transformers.AutoModel.from_pretrained(DIR)",
        ) from error
    missing = sorted(report["missing_keys"])
    if any("pooler" not in name for name in missing):
        raise ConfigError(
            f"embed.encoder {settings.encoder}: the weights in {root} lack "
            f"{next(name for name in missing if 'pooler' not in name)}; it would be random",
            mend="take weights that belong to the config.json beside them",
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model.has_pooler = not missing
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _be_quiet(transformers: Any) -> Iterator[None]:
    """No bars of progress, and no table of weights that are not there: those are looked at here."""
    log = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with hide_bars(transformers):
            yield
    finally:
        log.set_verbosity(level)


@contextmanager
def hide_bars(transformers: Any) -> Iterator[None]:
    """No bars of progress meanwhile: each worker would draw some into the log of its executor."""
    log = transformers.utils.logging
    had_bars = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            log.enable_progress_bar()


def _load_part(settings: EncoderSettings, root: Path, name: str, what: str, **arguments: Any) -> Any:
    maker = getattr(load_library("transformers"), name)
    try:
        return maker.from_pretrained(str(root), local_files_only=True, trust_remote_code=False, **arguments)
    except Exception as error:  # of transformers and tokenizers
        files = "preprocessor_config.json" if what == "image processor" else "tokenizer.json"
        raise ConfigError(
            f"embed.encoder {settings.encoder}: {root} has no {what} that can be loaded: {error}",
            mend=f"save the {what} beside the model (save_pretrained(DIR) writes {files})",
        ) from error


def _tower(output: Any) -> Any:
    """Transformers 5 returns an output object where 4 returned the tensor."""
    return output if hasattr(output, "shape") else output.pooler_output


def _check_pooling(settings: EncoderSettings) -> str | None:
    pooling = settings.options.get("pooling")
    if pooling is not None and pooling not in _POOLINGS:
        raise ConfigError(f"embed.options.pooling is {pooling!r}", mend=f"give one of {', '.join(_POOLINGS)}")
    return pooling


class ImageModel:
    """A model that sees."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, dtype: str) -> None:
        check_options(settings.encoder, settings.options, ("pooling",))
        assert located.root is not None
        self.name, self.device, self.dtype = settings.encoder, device, dtype
        self.batch_size = default_batch_size("images", device)
        self._torch = load_library("torch")
        transformers = load_library("transformers")
        self._pooling = _check_pooling(settings)
        # Pillow resizes the same whether torchvision is installed or not.
        is_old = int(transformers.__version__.split(".")[0]) < 5
        backend: dict[str, Any] = {"use_fast": False} if is_old else {"backend": "pil"}
        self._processor = _load_part(
            settings, located.root, "AutoImageProcessor", "image processor", **backend
        )
        self._model = _load_model(settings, located.root, located.weights, device)
        self._is_tower = hasattr(self._model, "get_image_features")
        names = [name for name, _ in self._model.named_parameters()]
        self._has_cls = any(name.endswith("cls_token") for name in names)
        if not self._is_tower and self._model.main_input_name != "pixel_values":
            raise ConfigError(
                f"embed.encoder {settings.encoder} takes {self._model.main_input_name}, not images",
                mend="use embed.texts, or an encoder for images such as hf:facebook/dinov2-large",
            )
        if self._model.config.model_type == "vit_mae":
            raise ConfigError(
                f"embed.encoder {settings.encoder} hides patches at random: its embeddings are not "
                "repeatable",
                mend="take another encoder, such as hf:facebook/dinov2-large",
            )

    def prepare(self, item: Any) -> FloatArray:
        """What the model's own processor makes of an image, shape (channels, height, width)."""
        # Else a picture of 3 pixels height is taken for one with channels first.
        made = self._processor(images=item, return_tensors="np", input_data_format="channels_last")
        return np.asarray(made["pixel_values"][0], dtype=np.float32)

    def encode(self, batch: FloatArray) -> FloatArray:
        """Embeddings of images, float32, shape (n, dim)."""
        torch = self._torch
        with torch.inference_mode(), use_dtype(self.device, self.dtype):
            pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device, non_blocking=True)
            features = self._pool(pixels)
        found: FloatArray = features.float().cpu().numpy()
        return found

    def _pool(self, pixels: Any) -> Any:
        if self._is_tower and self._pooling is None:
            return _tower(self._model.get_image_features(pixel_values=pixels))
        output = self._model(pixel_values=pixels)
        hidden, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
        pooled = pooled if self._model.has_pooler else None
        pooling = self._pooling or ("cls" if self._has_cls and hidden.ndim == 3 else "pooler")
        if pooling == "cls":
            return hidden[:, 0]
        if pooling == "pooler" and pooled is not None:
            return pooled.flatten(1)
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)


class TextModel:
    """A model that reads."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, dtype: str) -> None:
        check_options(settings.encoder, settings.options, ("pooling", "max_length", "prompt"))
        assert located.root is not None
        self.name, self.device, self.dtype = settings.encoder, device, dtype
        self.batch_size = default_batch_size("texts", device)
        self._torch = load_library("torch")
        self._pooling = _check_pooling(settings) or "mean"
        self._prompt = str(settings.options.get("prompt", ""))
        self._tokenizer = _load_part(settings, located.root, "AutoTokenizer", "tokenizer")
        self._model = _load_model(settings, located.root, located.weights, device)
        self._is_tower = hasattr(self._model, "get_text_features")
        if not self._is_tower and self._model.main_input_name != "input_ids":
            raise ConfigError(
                f"embed.encoder {settings.encoder} takes {self._model.main_input_name}, not texts",
                mend="use embed.images, or an encoder for texts such as "
                "hf:sentence-transformers/all-MiniLM-L6-v2",
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._max_length = int(settings.options.get("max_length", 0)) or self._find_max_length()
        # SigLIP was trained with texts padded to the full length.
        self._padding: Any = "max_length" if self._model.config.model_type.startswith("siglip") else True

    def _find_max_length(self) -> int | None:
        config = self._model.config
        config = getattr(config, "text_config", None) or config
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and config.model_type in _PADDED_POSITIONS:
            positions -= (config.pad_token_id or 0) + 1
        known = [n for n in (positions, self._tokenizer.model_max_length) if n is not None and n < 1 << 30]
        return min(known) if known else None

    def prepare(self, item: str) -> str:
        """The text, after the prompt."""
        return self._prompt + item

    def encode(self, batch: list[str]) -> FloatArray:
        """Embeddings of texts, float32, shape (n, dim); what is too long is truncated."""
        torch = self._torch
        length = self._max_length
        tokens = self._tokenizer(
            batch,
            padding=self._padding,
            truncation=length is not None,
            max_length=length,
            return_tensors="pt",
        ).to(self.device)
        with torch.inference_mode(), use_dtype(self.device, self.dtype):
            features = self._pool(tokens)
        found: FloatArray = features.float().cpu().numpy()
        return found

    def _pool(self, tokens: Any) -> Any:
        if self._is_tower:
            return _tower(self._model.get_text_features(**tokens))
        output = self._model(**tokens)
        hidden = output.last_hidden_state
        if self._pooling == "cls":
            return hidden[:, 0]
        if self._pooling == "pooler" and self._model.has_pooler:
            return output.pooler_output
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
