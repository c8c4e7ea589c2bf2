"""Models of timm, for images. Imports numpy and `errors`; torch and timm inside functions.

The embedding is what goes into the classifier. Option: ``num_classes``, the classes that a local file of
weights was trained with (0: it has no classifier).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from spark_dbp.encoders.devices import default_batch_size, use_dtype
from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.locate import Located
from spark_dbp.encoders.protocol import FloatArray, check_options
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError


class TimmModel:
    """A model of timm, without its classifier."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, dtype: str) -> None:
        check_options(settings.encoder, settings.options, ("num_classes",))
        if settings.kind != "images":
            raise ConfigError(
                f"embed.encoder {settings.encoder} takes images, not texts",
                mend="use embed.images, or another encoder",
            )
        self.name, self.device, self.dtype = settings.encoder, device, dtype
        self.batch_size = default_batch_size("images", device)
        self._torch = load_library("torch")
        self._model, self._transform = _load_model(settings, located, device)

    def prepare(self, item: Any) -> FloatArray:
        """The model's own transform of an image, shape (channels, height, width)."""
        found: FloatArray = self._transform(item).numpy()
        return found

    def encode(self, batch: FloatArray) -> FloatArray:
        """Embeddings of images, float32, shape (n, dim)."""
        torch = self._torch
        with torch.inference_mode(), use_dtype(self.device, self.dtype):
            pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(self.device, non_blocking=True)
            features = self._model(pixels)
        found: FloatArray = features.float().cpu().numpy()
        return found


def _load_model(settings: EncoderSettings, located: Located, device: str) -> tuple[Any, Any]:
    timm = load_library("timm")
    name, arguments = located.model, {}
    # Loading from a file is what timm does first of all, and only with weights_only.
    pretrained: dict[str, Any] = {"file": str(located.weights[0]), "custom_load": False}
    key = "pretrained_cfg_overlay"
    if located.root is not None:
        config = json.loads((located.root / "config.json").read_text(encoding="utf-8"))
        name, arguments = config["architecture"], dict(config.get("model_args") or {})
        told = config.get("pretrained_cfg") or {k: v for k, v in config.items() if k != "architecture"}
        counted = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
        pretrained = {**told, **counted, **pretrained, "source": "", "hf_hub_id": None}
        arguments.update(counted)
        key = "pretrained_cfg"
    if "num_classes" in settings.options:
        arguments["num_classes"] = pretrained["num_classes"] = int(settings.options["num_classes"])
    try:
        # With its classifier first: then timm refuses weights that lack a part.
        model = timm.create_model(name, pretrained=True, **{key: pretrained}, **arguments)
    except Exception as error:
        raise ConfigError(
            f"embed.encoder {settings.encoder}: timm cannot make a model {name!r} of {located.weights[0]}: "
            f"{error}",
            mend="check the name (timm.list_models()), and that the weights are of this model; where they "
            "were "
            "trained with other classes than ImageNet's, set embed.options.num_classes (0: no classifier)",
        ) from error
    model.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model.eval().requires_grad_(False).to(device), transform
