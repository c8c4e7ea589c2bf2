"""Models of the Hugging Face hub: which files, and where they lie.

Imports `errors`; huggingface_hub inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from spark_dbp.encoders.libraries import load_library
from spark_dbp.errors import ConfigError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SETTINGS = {".json", ".txt", ".model", ".jinja", ".bpe", ".vocab"}
_WEIGHTS = (".safetensors", ".bin")
# The same weights in other forms.
_OTHER_FORMS = {"onnx", "openvino", "coreml", "tensorrt", "gguf", "original"}


def choose_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files those that load its model: settings, and weights in one form.

    Examples
    --------
    >>> choose_files(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
    ['config.json', 'model.safetensors']
    """
    paths = [PurePosixPath(name) for name in names]
    paths = [path for path in paths if path.parts[0] not in _OTHER_FORMS and not path.name.startswith(".")]
    chosen = [path for path in paths if path.suffix in _SETTINGS]
    for folder in {path.parent for path in paths}:
        weights = [path for path in paths if path.parent == folder and path.suffix in _WEIGHTS]
        safe = [path for path in weights if path.suffix == ".safetensors"]
        chosen += _leave_out_variants(safe or weights)
    return sorted(str(path) for path in chosen)


def _leave_out_variants(weights: list[PurePosixPath]) -> list[PurePosixPath]:
    """Without ``model.fp16.safetensors`` where ``model.safetensors`` is."""
    names = {path.name for path in weights}
    return [p for p in weights if p.name.count(".") < 2 or f"{p.name.split('.')[0]}{p.suffix}" not in names]


def fetch_model(name: str, revision: str | None, setting: str) -> tuple[Path, str | None]:
    """The local directory of a model of the hub, downloaded where it must be.

    Parameters
    ----------
    name : str
        ``owner/name``.
    revision : str, optional
        Commit, tag or branch; None: the newest.
    setting : str
        What the user wrote, for messages.

    Returns
    -------
    directory : Path
    commit : str or None

    Raises
    ------
    ConfigError
    """
    hub = load_library("huggingface_hub")
    errors = load_library("huggingface_hub.errors")
    if revision is not None and _COMMIT.fullmatch(revision):
        found = _find_in_cache(hub, name, revision)
        if found is not None:
            return found, revision
    refused: tuple[type[Exception], ...] = (
        errors.GatedRepoError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    )
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        files = choose_files(sibling.rfilename for sibling in info.siblings or [])
        directory = hub.snapshot_download(name, revision=info.sha, allow_patterns=files)
        return Path(directory), info.sha
    except refused as error:
        raise ConfigError(
            f"embed.encoder {setting}: the Hugging Face hub does not give {name} at revision "
            f"{revision or 'main'}: {_shorten(error)}",
            mend="check embed.encoder and embed.revision; a model that asks for an agreement needs `hf "
            "auth login`",
        ) from error
    # The hub cannot be reached, or is not to be: the libraries for HTTP have errors of many types.
    except Exception as error:
        found = _find_in_cache(hub, name, revision)
        if found is not None:
            return found, found.name if _COMMIT.fullmatch(found.name) else None
        pin = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"embed.encoder {setting}: {name} is not in the local cache, and the Hugging Face hub cannot be "
            f"reached: {_shorten(error)}",
            mend=f"where there is a network, run `hf download {name}{pin} --local-dir DIR`, copy DIR to this "
            "machine and to the workers, and set embed.encoder: DIR (without embed.revision)",
        ) from error


def _find_in_cache(hub: object, name: str, revision: str | None) -> Path | None:
    try:
        found = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))  # type: ignore[attr-defined]
    except Exception:
        return None
    has_weights = any(path.suffix in _WEIGHTS for path in found.rglob("*"))
    return found if has_weights else None


def _shorten(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
