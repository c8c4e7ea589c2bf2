"""Say which encoder it is: digests of its files and versions of its libraries.

Imports `errors` and what is beside it.

Nothing is loaded, and torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from spark_dbp.encoders import callables
from spark_dbp.encoders.libraries import find_versions
from spark_dbp.encoders.locate import Located, locate_encoder
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError

_LIBRARIES = {
    "transformers": ("torch", "transformers", "tokenizers"),
    "sentence_transformers": ("torch", "transformers", "tokenizers", "sentence_transformers"),
    "timm": ("torch", "timm"),
    "open_clip": ("torch", "open_clip", "timm"),
    "onnxruntime": ("onnxruntime",),
    "python": (),
}
# What must be equal on the driver and on a worker: else the vectors of one table come from two models.
_SAME_EVERYWHERE = ("weights_sha256", "preprocessing_sha256")


def identify_encoder(settings: EncoderSettings) -> dict[str, Any]:
    """What decides on the embeddings, as values that JSON takes. A model of a hub is downloaded.

    Other weights at the same path, another tokenizer, other options or other versions of libraries give
    another identity. Another directory with the same files gives the same, but for ``encoder``.

    Returns
    -------
    dict
        ``encoder``, ``kind``, ``maker``, ``revision`` (commit of the hub or None), ``weights_sha256``,
        ``preprocessing_sha256``, ``options``, ``dtype``, ``device`` (both as set) and ``versions``.

    Raises
    ------
    ConfigError

    Notes
    -----
    Reads all weights once: about a second a gigabyte.
    """
    return describe_located(settings, locate_encoder(settings))


def describe_located(settings: EncoderSettings, located: Located) -> dict[str, Any]:
    """`identify_encoder` for an encoder that was found already."""
    weights, preprocessing, facts = located.weights, located.preprocessing, dict(located.facts)
    libraries = list(_LIBRARIES[located.maker])
    if located.maker == "python":
        source, weights, named = callables.find_parts(settings, located.model)
        preprocessing = (source,)
        libraries += named
    elif located.model:
        facts["model"] = located.model
    if settings.kind == "images":
        libraries.append("PIL")
    elif located.maker == "onnxruntime":
        libraries.append("tokenizers")
    return {
        "encoder": settings.encoder,
        "kind": settings.kind,
        "maker": located.maker,
        "revision": located.revision,
        "weights_sha256": _digest_all(weights, with_names=False),
        "preprocessing_sha256": _digest_all(preprocessing, with_names=True, facts=facts),
        "options": json.loads(json.dumps(dict(settings.options), default=str)),
        "dtype": settings.dtype,
        "device": settings.device.partition(":")[0],
        "versions": find_versions(*libraries),
    }


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a worker's model that is not the driver's.

    Raises
    ------
    ConfigError
    """
    for key in _SAME_EVERYWHERE:
        if found[key] != expected[key]:
            part = "weights" if key == "weights_sha256" else "settings, tokenizer or source"
            raise ConfigError(
                f"embed.encoder {found['encoder']}: the {part} on this worker are not those on the driver",
                mend="give driver and workers the same files, or wait until a copy is complete",
            )


def _digest_all(files: Iterable[Path], *, with_names: bool, facts: Mapping[str, Any] | None = None) -> str:
    total = hashlib.sha256()
    for path in files:
        if with_names:
            total.update(path.name.encode() + b"\0")
        total.update(digest_file(path))
    if facts:
        total.update(json.dumps(dict(facts), sort_keys=True, default=str).encode())
    return total.hexdigest()


def digest_file(path: Path) -> bytes:
    """SHA-256 of a file's content; known without reading while size and time of change stay.

    Raises
    ------
    ConfigError
    """
    try:
        state = path.stat()
        return _digest_content(str(path), state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        raise ConfigError(
            f"embed.encoder: {path} cannot be read: {error.strerror or error}",
            mend="check that it exists, and that this user may read it",
        ) from error


@lru_cache(maxsize=4096)
def _digest_content(path: str, _size: int, _changed: int, _number: int) -> bytes:
    total = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(4 << 20):
            total.update(chunk)
    return total.digest()
