"""Encoders that are classes of the user's own: ``python:module.Class``. Imports numpy and `errors`.

The class is made with ``embed.options`` as keyword arguments, and the instance is called with a list of PIL
images (RGB) or of texts; it returns an array of shape (n, dim). It may also have:

- ``load(device)``: called once, before the first call, with ``cpu``, ``cuda:N`` or ``mps``;
- ``prepare(item)``: what is done with each item on the reading threads. Where it returns float32 arrays of
  one shape, the instance is called with one array (n, ...) instead of a list;
- ``files``: paths of its weights; their content becomes part of what identifies the encoder;
- ``libraries``: names of modules whose versions become part of it too, such as ``("torch",)``;
- ``batch_size``: how many items at once, where embed.batch_size says nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

from spark_dbp.encoders.protocol import FloatArray
from spark_dbp.encoders.settings import EncoderSettings
from spark_dbp.errors import ConfigError

_FORM = "write python:module.Class, of a module that can be imported on the driver and on every worker"


def _import_module(name: str, setting: str) -> tuple[Any, str]:
    module_name, _, class_name = name.rpartition(".")
    if not module_name or not class_name:
        raise ConfigError(f"embed.encoder {setting} names no class of a module", mend=_FORM)
    if module_name == "__main__":
        raise ConfigError(
            f"embed.encoder {setting}: workers cannot import what a notebook or script defines",
            mend="put the class into a file of its own that is on the workers' path, and " + _FORM,
        )
    try:
        return importlib.import_module(module_name), class_name
    except ImportError as error:
        raise ConfigError(
            f"embed.encoder {setting}: the module {module_name} cannot be imported: {error}", mend=_FORM
        ) from error


def make_instance(settings: EncoderSettings, name: str) -> Any:
    """The user's object, made with `options`; nothing is loaded.

    Raises
    ------
    ConfigError
    """
    module, class_name = _import_module(name, settings.encoder)
    made = getattr(module, class_name, None)
    if not callable(made):
        raise ConfigError(
            f"embed.encoder {settings.encoder}: {module.__name__} has no class {class_name}", mend=_FORM
        )
    try:
        instance = made(**settings.options)
    except TypeError as error:
        raise ConfigError(
            f"embed.encoder {settings.encoder} cannot be made with embed.options "
            f"({', '.join(settings.options) or 'none'}): {error}",
            mend="let embed.options hold the keyword arguments of the class",
        ) from error
    if not callable(instance):
        raise ConfigError(
            f"embed.encoder {settings.encoder}: an instance of {class_name} cannot be called",
            mend="give it __call__(self, items), which returns an array of shape (n, dim)",
        )
    return instance


def find_parts(settings: EncoderSettings, name: str) -> tuple[Path, tuple[Path, ...], tuple[str, ...]]:
    """Source of the module, and the files and libraries that the instance names.

    Raises
    ------
    ConfigError
    """
    instance = make_instance(settings, name)
    module = sys.modules[type(instance).__module__]
    if not getattr(module, "__file__", None):
        raise ConfigError(f"embed.encoder {settings.encoder}: its module has no file", mend=_FORM)
    files = getattr(instance, "files", ())
    files = [files] if isinstance(files, str | Path) else list(files)
    paths = tuple(Path(file).expanduser() for file in files)
    return Path(str(module.__file__)), paths, tuple(getattr(instance, "libraries", ()))


class CallableEncoder:
    """The user's object behind the protocol of encoders."""

    def __init__(self, settings: EncoderSettings, name: str, device: str) -> None:
        self.name = settings.encoder
        self.device = device
        self.dtype = settings.dtype if settings.dtype != "auto" else "float32"
        self._instance = make_instance(settings, name)
        self.batch_size = int(getattr(self._instance, "batch_size", None) or 32)
        if hasattr(self._instance, "load"):
            self._instance.load(device)
        self._prepare = getattr(self._instance, "prepare", None)

    def prepare(self, item: Any) -> Any:
        """What the object's own `prepare` makes of an item, or the item."""
        return item if self._prepare is None else self._prepare(item)

    def encode(self, batch: Any) -> FloatArray:
        """What the object returns, checked by the caller; tensors become arrays."""
        found = self._instance(batch)
        if hasattr(found, "detach"):
            found = found.detach().float().cpu().numpy()
        if isinstance(found, np.ndarray) and found.dtype == object:
            raise ConfigError(
                f"the encoder {self.name} returned an array of objects",
                mend="return an array of numbers of shape (n, dim)",
            )
        return found
