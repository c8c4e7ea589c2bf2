"""Models of open_clip: image and text towers.

Imports numpy and `errors`; torch and open_clip inside functions.

Texts that are longer than the model's context are truncated. Option: ``quick_gelu`` (true for weights in a
local file that were trained with it, as OpenAI's).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spark_dbp.encoders.devices import default_batch_size, use_dtype
from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.locate import Located
from spark_dbp.encoders.protocol import FloatArray, check_options
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError


class OpenClipModel:
    """One tower of a model of open_clip."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, dtype: str) -> None:
        check_options(settings.encoder, settings.options, ("quick_gelu",))
        self.name, self.device, self.dtype = settings.encoder, device, dtype
        self.batch_size = default_batch_size(settings.kind, device)
        self._torch, open_clip = load_library("torch"), load_library("open_clip")
        name = located.model or f"local-dir:{located.root}"
        facts = located.facts
        try:
            model, _, self._transform = open_clip.create_model_and_transforms(
                name,
                pretrained=str(located.weights[0]) if located.model else None,
                force_quick_gelu=bool(settings.options.get("quick_gelu", facts.get("quick_gelu", False))),
                image_mean=facts.get("mean"),
                image_std=facts.get("std"),
                image_interpolation=facts.get("interpolation"),
                image_resize_mode=facts.get("resize_mode"),
                weights_only=True,
            )
        except Exception as error:  # of open_clip, torch and safetensors
            raise ConfigError(
                f"embed.encoder {settings.encoder}: open_clip cannot make a model {name!r} of "
                f"{located.weights[0]}: {error}",
                mend="check the name (open_clip.list_models()), and that the weights are of this model",
            ) from error
        self._model = model.eval().requires_grad_(False).to(device)
        self._is_image = settings.kind == "images"
        if not self._is_image:
            self._tokenizer = _load_tokenizer(open_clip, name, located)

    def prepare(self, item: Any) -> Any:
        """The model's own transform of an image, shape (channels, height, width); a text as it is."""
        return self._transform(item).numpy() if self._is_image else item

    def encode(self, batch: Any) -> FloatArray:
        """Embeddings of images or texts, float32, shape (n, dim)."""
        torch = self._torch
        with torch.inference_mode(), use_dtype(self.device, self.dtype):
            if self._is_image:
                pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device, non_blocking=True)
                features = self._model.encode_image(pixels)
            else:
                features = self._model.encode_text(self._tokenizer(list(batch)).to(self.device))
        found: FloatArray = features.float().cpu().numpy()
        return found


def _load_tokenizer(open_clip: Any, name: str, located: Located) -> Any:
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if located.model and (text.get("hf_tokenizer_name") or "siglip" in name.lower()):
        raise ConfigError(
            f"embed.encoder: the tokenizer of {name} is in another repository, without a revision",
            mend="write open_clip:hf-hub:OWNER/NAME, or name a directory with the model and its tokenizer",
        )
    return open_clip.get_tokenizer(name)
