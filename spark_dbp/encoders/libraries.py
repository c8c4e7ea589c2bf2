"""Import the libraries that encoders need, where they are needed. Imports `errors`."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from spark_dbp.errors import ConfigError

# The package on PyPI, where its name is not that of the module.
_PACKAGES = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "sentence_transformers": "sentence-transformers",
    "huggingface_hub": "huggingface-hub",
}
_OF_ONNX = ("onnxruntime", "tokenizers")


def load_library(name: str) -> Any:
    """Import a module, or say what to install.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> load_library("json").dumps(1)
    '1'
    >>> load_library("no_such_library")
    Traceback (most recent call last):
    spark_dbp.errors.ConfigError: ...
    """
    try:
        return importlib.import_module(name)
    # RuntimeError: torchvision beside a torch that it was not built for.
    except (ImportError, OSError, RuntimeError) as error:
        top = name.split(".")[0]
        package = _PACKAGES.get(top, top)
        extra = "onnx" if top in _OF_ONNX else "encoders"
        raise ConfigError(
            f"embed.encoder needs the package {package}, which cannot be imported here: {error}",
            mend=f"pip install 'spark-dbp[{extra}]' on the driver and on the workers",
        ) from error


def find_versions(*names: str) -> dict[str, str]:
    """Versions of the installed packages of these modules, without importing them.

    Raises
    ------
    ConfigError
        One of them is not installed.

    Examples
    --------
    >>> list(find_versions("numpy"))
    ['numpy']
    """
    found = {}
    for name in names:
        package = _PACKAGES.get(name, name)
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # Some builds have names of their own (onnxruntime-gpu): the module knows its version.
            found[package] = str(getattr(load_library(name), "__version__", "unknown"))
    return found
