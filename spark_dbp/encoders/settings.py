"""What the user says of an encoder, as plain values that travel to workers. Imports types of `config_embed`.

No library of models is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from spark_dbp.config_embed import EmbedConfig

Kind = Literal["images", "texts"]


@dataclass(frozen=True)
class EncoderSettings:
    """An encoder, and how it is to run. Picklable.

    Attributes
    ----------
    kind : {"images", "texts"}
        What is encoded.
    encoder : str
        A directory or file, or ``hf:NAME``, ``timm:NAME``, ``open_clip:MODEL/TAG``, ``onnx:FILE``,
        ``python:module.Class``.
    revision : str, optional
        Commit, tag or branch of a model of the Hugging Face hub.
    weights : str, optional
        Local file of weights, for ``timm:`` and ``open_clip:``.
    options : mapping
        What the encoder itself understands; see the module of each.
    batch_size : int, optional
        Items that the model gets at once. None: a number that suits the device.
    dtype : {"auto", "float32", "float16", "bfloat16"}
        In which the model computes. The vectors are float32 always.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    workers_per_gpu : int
        Processes of one machine that hold a model on one GPU at the same time.
    decode_threads : int, optional
        Threads that read and decode. None: as many as the task has cores.
    max_pixels : int
        Images with more are refused before they are decoded.

    Examples
    --------
    >>> EncoderSettings("texts", "python:my_models.Bag").batch_size is None
    True
    """

    kind: Kind
    encoder: str
    revision: str | None = None
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    batch_size: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    workers_per_gpu: int = 1
    decode_threads: int | None = None
    max_pixels: int = 100_000_000

    @classmethod
    def from_config(cls, config: EmbedConfig) -> EncoderSettings:
        """The settings of one section ``embed`` of the configuration."""
        return cls(
            kind=config.kind,
            encoder=config.encoder_name,
            revision=config.revision,
            weights=config.weights,
            options=dict(config.options),
            batch_size=config.batch_size,
            dtype=config.dtype,
            device=config.device,
            workers_per_gpu=config.workers_per_gpu,
            decode_threads=config.decode_threads,
            max_pixels=config.max_pixels,
        )

    def to_text(self) -> str:
        """All values as one text: equal for equal settings."""
        return json.dumps(asdict(self), sort_keys=True, default=str)
