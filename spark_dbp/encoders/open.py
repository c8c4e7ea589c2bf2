"""Open an encoder by name, and try it. Imports numpy, `errors` and what is beside it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from spark_dbp.encoders import devices
from spark_dbp.encoders.identity import check_identity, describe_located
from spark_dbp.encoders.locate import Located, locate_encoder
from spark_dbp.encoders.protocol import Encoder
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError


def pin_revision(settings: EncoderSettings, identity: Mapping[str, Any] | None) -> EncoderSettings:
    """The settings, with the commit that was identified: a branch may have moved since."""
    if identity is None or identity.get("revision") is None:
        return settings
    return dataclasses.replace(settings, revision=identity["revision"])


def list_usable_gpus(located: Located) -> list[int]:
    """Numbers of the GPUs that the library of this encoder can use."""
    if located.maker == "onnxruntime":
        from spark_dbp.encoders.onnx_file import list_onnx_gpus

        return list_onnx_gpus()
    return devices.list_gpus()


def open_encoder(
    settings: EncoderSettings,
    *,
    device: str | None = None,
    threads: int | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Encoder:
    """Load an encoder.

    Parameters
    ----------
    settings : EncoderSettings
    device : str, optional
        Where it was chosen already (``cpu``, ``cuda:N``, ``mps``); None: as the settings say.
    threads : int, optional
        Of the CPU; None: all that this process may use.
    identity : mapping, optional
        What `identify_encoder` said; other files are refused, and its commit is taken.

    Raises
    ------
    ConfigError
        Something is missing or does not fit; the message names the setting.
    """
    settings = pin_revision(settings, identity)
    located = locate_encoder(settings)
    if identity is not None:
        check_identity(describe_located(settings, located), identity)
    if device is None:
        device = devices.choose_devices(settings.device, None, list_usable_gpus(located))[0]
    threads = threads or count_cores()
    encoder = open_located(settings, located, device, threads)
    devices.bound_threads(threads)
    return encoder


def count_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def open_located(settings: EncoderSettings, located: Located, device: str, threads: int) -> Encoder:
    """Load an encoder whose files were found, on this device."""
    if located.maker == "onnxruntime":
        from spark_dbp.encoders.onnx_file import OnnxModel

        return OnnxModel(settings, located, device, threads)
    dtype = devices.choose_dtype(settings.dtype, device)
    if located.maker == "python":
        from spark_dbp.encoders.callables import CallableEncoder

        return CallableEncoder(settings, located.model, device)
    if located.maker == "timm":
        from spark_dbp.encoders.timm_models import TimmModel

        return TimmModel(settings, located, device, dtype)
    if located.maker == "open_clip":
        from spark_dbp.encoders.clip import OpenClipModel

        return OpenClipModel(settings, located, device, dtype)
    if located.maker == "sentence_transformers":
        from spark_dbp.encoders.sentence_models import SentenceModel

        return SentenceModel(settings, located, device, dtype)
    from spark_dbp.encoders.hugging_face import open_transformers

    found: Encoder = open_transformers(settings, located, device, dtype)
    return found


def stack_items(prepared: list[Any], name: str) -> Any:
    """Arrays of one shape as one array, anything else as the list it is.

    Raises
    ------
    ConfigError
    """
    if not all(isinstance(item, np.ndarray) for item in prepared):
        return prepared
    shapes = {item.shape for item in prepared}
    if len(shapes) > 1:
        raise refuse_shapes(name, *sorted(shapes)[:2])
    return np.stack(prepared)


def refuse_shapes(name: str, first: tuple[int, ...], second: tuple[int, ...]) -> ConfigError:
    """The error where images become arrays of different shapes."""
    return ConfigError(
        f"the encoder {name} makes arrays of different shapes of different images: {first} and {second}",
        mend="its preprocessing must crop or resize to a fixed size; save such a preprocessor_config.json "
        "beside it",
    )
