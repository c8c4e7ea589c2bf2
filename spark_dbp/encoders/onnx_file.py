"""ONNX files, for images and texts. Imports numpy and `errors`; onnxruntime and tokenizers inside functions.

Images: one input (n, 3, height, width); size and normalisation from preprocessor_config.json beside the file
or from the options ``size``, ``mean``, ``std`` and ``resample``. Texts: ``input_ids``, ``attention_mask`` and
``token_type_ids``, as many as the model has, from tokenizer.json beside the file; texts are truncated to the
option ``max_length``, else to what tokenizer.json or tokenizer_config.json says, else to 512 tokens. An
output (n, dim) is taken as it is; of (n, tokens, dim) the first token for images, and the mean for texts. The
option ``output`` names the output.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import numpy as np

from spark_dbp.encoders.devices import default_batch_size, list_gpus
from spark_dbp.encoders.images import PixelSteps
from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.locate import Located
from spark_dbp.encoders.protocol import FloatArray, check_options
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError

_OUTPUTS = (
    "image_embeds",
    "text_embeds",
    "sentence_embedding",
    "embeddings",
    "pooler_output",
    "last_hidden_state",
)
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def list_onnx_gpus() -> list[int]:
    """Numbers of the GPUs that onnxruntime can use, if it was built for them."""
    if "CUDAExecutionProvider" not in load_library("onnxruntime").get_available_providers():
        return []
    command = shutil.which("nvidia-smi")  # onnxruntime itself does not count them
    if command is None:
        return list_gpus()
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    n_gpus = sum(line.startswith("GPU ") for line in listed)
    return list(range(n_gpus if visible is None else min(n_gpus, len(visible.split(",")) if visible else 0)))


class OnnxModel:
    """A model in an ONNX file."""

    def __init__(self, settings: EncoderSettings, located: Located, device: str, threads: int) -> None:
        known = (
            ("output", "size", "mean", "std", "resample")
            if settings.kind == "images"
            else ("output", "max_length")
        )
        check_options(settings.encoder, settings.options, known)
        self.name, self.device, self.dtype = settings.encoder, device, "float32"
        if settings.dtype not in ("auto", "float32"):
            raise ConfigError(
                f"embed.dtype is {settings.dtype}, and an ONNX file computes in the types it was written "
                "with",
                mend="remove embed.dtype, or export the model in that type",
            )
        self.batch_size = default_batch_size(settings.kind, device)
        self._is_image = settings.kind == "images"
        self._session = _open_session(settings, located, device, threads)
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self._output = self._choose_output(settings)
        if self._is_image:
            self._read_image_input(settings, located)
        else:
            self._read_text_inputs(settings, located)

    def _choose_output(self, settings: EncoderSettings) -> str:
        names = [entry.name for entry in self._session.get_outputs()]
        wanted = settings.options.get("output")
        if wanted is not None and wanted not in names:
            raise ConfigError(
                f"embed.options.output is {wanted!r}, which {self.name} has not",
                mend=f"its outputs are: {', '.join(names)}",
            )
        if wanted is None and len(names) > 1:
            wanted = next((name for name in _OUTPUTS if name in names), None)
            if wanted is None:
                raise ConfigError(
                    f"embed.encoder {self.name} has several outputs: {', '.join(names)}",
                    mend="name one in embed.options.output",
                )
        return str(wanted or names[0])

    def _read_image_input(self, settings: EncoderSettings, located: Located) -> None:
        entries = list(self._inputs.values())
        if len(entries) != 1 or len(entries[0].shape) != 4 or entries[0].type not in _TYPES:
            found = ", ".join(f"{entry.name} {entry.type}{list(entry.shape)}" for entry in entries)
            raise ConfigError(
                f"embed.encoder {self.name} does not take one batch of images: its inputs are {found}",
                mend="give a model with one input of numbers (n, 3, height, width)",
            )
        self._pixel_type = _TYPES[entries[0].type]
        if located.preprocessing and "size" not in settings.options:
            path = located.preprocessing[0]
            self._steps = PixelSteps.from_processor(json.loads(path.read_text(encoding="utf-8")), str(path))
        elif "size" in settings.options:
            self._steps = PixelSteps.from_options(settings.options)
        else:
            raise ConfigError(
                f"embed.encoder {self.name}: nothing says how images become pixels",
                mend="put preprocessor_config.json beside the file, or give embed.options size, mean and std",
            )

    def _read_text_inputs(self, settings: EncoderSettings, located: Located) -> None:
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if "input_ids" not in self._inputs or set(self._inputs) - known:
            raise ConfigError(
                f"embed.encoder {self.name} takes {', '.join(self._inputs)}",
                mend=f"give a model for texts, whose inputs are among {', '.join(sorted(known))}",
            )
        files = {path.name: path for path in located.preprocessing}
        if "tokenizer.json" not in files:
            raise ConfigError(
                f"embed.encoder {self.name}: there is no tokenizer.json beside the file",
                mend="copy it there: tokenizer.save_pretrained(DIR) writes it",
            )
        self._tokenizer = load_library("tokenizers").Tokenizer.from_file(str(files["tokenizer.json"]))
        length = settings.options.get("max_length")
        told = self._tokenizer.truncation
        if length is None and told is None:
            config = files.get("tokenizer_config.json")
            limit = json.loads(config.read_text(encoding="utf-8")).get("model_max_length") if config else None
            length = int(limit) if limit is not None and limit < 1 << 30 else 512
        if length is not None:
            self._tokenizer.enable_truncation(int(length))
        padding = self._tokenizer.padding
        if padding is None:
            token = next(
                (
                    t
                    for t in ("[PAD]", "<pad>", "<|endoftext|>")
                    if self._tokenizer.token_to_id(t) is not None
                ),
                None,
            )
            self._tokenizer.enable_padding(
                pad_id=self._tokenizer.token_to_id(token) if token else 0, pad_token=token or "[PAD]"
            )
        elif padding.get("length"):
            self._tokenizer.enable_padding(**{**padding, "length": None})

    def prepare(self, item: Any) -> Any:
        """Pixels of an image, shape (3, height, width); a text as it is."""
        return self._steps.apply(item) if self._is_image else item

    def encode(self, batch: Any) -> FloatArray:
        """Embeddings of images or texts, float32, shape (n, dim)."""
        mask = None
        if self._is_image:
            feed = {next(iter(self._inputs)): np.asarray(batch, dtype=self._pixel_type)}
        else:
            coded = self._tokenizer.encode_batch(list(batch))
            mask = np.array([code.attention_mask for code in coded], np.int64)
            feed = {
                "input_ids": np.array([code.ids for code in coded], np.int64),
                "attention_mask": mask,
                "token_type_ids": np.array([code.type_ids for code in coded], np.int64),
            }
            feed = {name: self._cast(name, value) for name, value in feed.items() if name in self._inputs}
        found = self._session.run([self._output], feed)[0]
        if found.ndim == 4:
            return np.asarray(found.mean((2, 3)), np.float32)
        if found.ndim == 3 and mask is not None:
            weights = mask[..., None].astype(np.float32)
            return np.asarray((found * weights).sum(1) / np.maximum(weights.sum(1), 1), np.float32)
        return np.asarray(found[:, 0] if found.ndim == 3 else found, np.float32)

    def _cast(self, name: str, value: Any) -> Any:
        return value.astype(np.int32) if self._inputs[name].type == "tensor(int32)" else value


def _open_session(settings: EncoderSettings, located: Located, device: str, threads: int) -> Any:
    runtime = load_library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"}))
    try:
        session = runtime.InferenceSession(str(located.weights[0]), options, providers=providers)
    except Exception as error:  # onnxruntime has a type for each cause, and no base
        raise ConfigError(
            f"embed.encoder {settings.encoder}: onnxruntime cannot load {located.weights[0]}: {error}",
            mend="check that it is a whole ONNX model, and that this onnxruntime knows its operators",
        ) from error
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise ConfigError(
            f"embed.device is {settings.device}, and onnxruntime cannot use a GPU here",
            mend="set embed.device: cpu, or install what onnxruntime-gpu needs (CUDA and cuDNN of its "
            "version)",
        )
    return session
