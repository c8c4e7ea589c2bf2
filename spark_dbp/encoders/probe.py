"""Try an encoder on two small samples. Imports numpy, `errors` and what is beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from spark_dbp.encoders.libraries import load_library
from spark_dbp.encoders.open import stack_items
from spark_dbp.encoders.process import get_encoder, leave_encoder, use_encoder
from spark_dbp.encoders.protocol import Encoder, check_embeddings
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError, SparkDbpError


def probe_encoder(
    settings: EncoderSettings,
    *,
    cores: int | None = None,
    gpu: str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Load an encoder and encode two tiny samples: what is wrong shows before the job begins.

    It stays loaded in this process, where `encode_stream` finds it.

    Parameters
    ----------
    settings : EncoderSettings
    cores, gpu, identity
        As for `encode_stream`.

    Returns
    -------
    dict
        ``dimension`` (int), ``device`` (``cpu``, ``cuda`` or ``mps``) and ``dtype`` (in which it computes).

    Raises
    ------
    ConfigError
    """
    loaded = get_encoder(settings, cores=cores, gpu=gpu, identity=identity)
    use_encoder(loaded)
    try:
        return _try(loaded.encoder, settings)
    finally:
        leave_encoder(loaded)


def _try(encoder: Encoder, settings: EncoderSettings) -> dict[str, Any]:
    samples = _make_images() if settings.kind == "images" else ["a cat on a mat", "sorting"]
    try:
        prepared = [encoder.prepare(sample) for sample in samples]
        found = encoder.encode(stack_items(prepared, encoder.name))
    except SparkDbpError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the encoder {settings.encoder} failed on two small samples: {type(error).__name__}: {error}",
            mend="check that it takes "
            + ("a list of RGB images" if settings.kind == "images" else "a list of texts")
            + ", and embed.options",
        ) from error
    matrix = check_embeddings(encoder.name, found, len(samples), None)
    if not np.isfinite(matrix).all():
        raise ConfigError(
            f"the encoder {settings.encoder} returned NaN or Inf for a small sample",
            mend="check its weights, and set embed.dtype: float32 if it is another",
        )
    return {
        "dimension": int(matrix.shape[1]),
        "device": encoder.device.partition(":")[0],
        "dtype": encoder.dtype,
    }


def _make_images() -> list[Any]:
    """One wide and one high: what makes arrays of the image's own shape shows."""
    pillow = load_library("PIL.Image")
    ramp = np.linspace(0, 255, 96 * 64 * 3).reshape(64, 96, 3).astype(np.uint8)
    return [pillow.fromarray(ramp), pillow.fromarray(np.ascontiguousarray(ramp.transpose(1, 0, 2)))]
