"""How a run's key is made of a sample, and what keys are looked up in. Imports numpy, `keep_trie`, `errors`.

The forms of a key:

==================  ===========================================================================
``webdataset``      the sample's ``__key__``, also named so: ``train/000010005``
``json:FIELD``      a field of its json, text or a whole number: ``json:uid``
``shard/key``       name of the tar without ``.tar``, and the key: ``00001/train/000010005``
a function          of (sample's key, its json as a dict or None, path of the shard); returns the key
==================  ===========================================================================
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError
from spark_dbp.loaders.keep_trie import KeepTrie

Fields = dict[str, Any]
KeyFunction = Callable[[str, "Fields | None", str], "str | None"]

# Keys of a set whose type is checked. It is asked for each shard, and a set has keys of one type.
_LOOKED_AT = 1000
_FORMS = "one of webdataset, json:FIELD, shard/key, or a function"


class NoKeyError(ValueError):
    """A sample has no key of this form. It says why."""


@dataclass(frozen=True)
class KeyForm:
    """A way to make keys.

    Attributes
    ----------
    name : str
        As it is written in an index.
    needs_json : bool
        Whether the json of a sample is looked at.
    field : str
        The field of the json; empty for the other forms.
    function : callable or None
    """

    name: str
    needs_json: bool = False
    field: str = ""
    function: KeyFunction | None = None

    def make_key(self, sample: str, content: Any, shard: str) -> str:
        """The key of a sample.

        Parameters
        ----------
        sample : str
            As webdataset forms it.
        content : bytes, str, dict or None
            Its json.
        shard : str
            Path of the tar.

        Returns
        -------
        str

        Raises
        ------
        NoKeyError
            When it has none.
        ConfigError
            When a function returns something else than text.

        Examples
        --------
        >>> open_key_form("json:uid").make_key("a", b'{"uid": 7}', "x.tar")
        '7'
        >>> open_key_form("shard/key").make_key("a", None, "s3://lake/00001.tar")
        '00001/a'
        """
        if self.name == "webdataset":
            return sample
        if self.name == "shard/key":
            return f"{posixpath.basename(shard).removesuffix('.tar')}/{sample}"
        fields = _read_fields(content)
        if self.function is None:
            if fields is None:
                raise NoKeyError("it has no json")
            value = fields.get(self.field)
            if isinstance(value, str):
                return value
            if isinstance(value, int) and not isinstance(value, bool):
                return str(value)
            shown = "is missing" if self.field not in fields else f"is {json.dumps(value)[:40]}"
            raise NoKeyError(f"{self.field} in its json {shown}")
        made = self.function(sample, fields, shard)
        if made is None:
            raise NoKeyError("the function returned None")
        if not isinstance(made, str):
            raise ConfigError(
                f"the function that makes keys returned {type(made).__name__} for sample {sample!r} "
                f"of {shard}",
                mend="return the key as str, or None for a sample without one",
            )
        return made


def open_key_form(key: str | KeyFunction | KeyForm) -> KeyForm:
    """The form that a setting names.

    Raises
    ------
    ConfigError
        When it names none.

    Examples
    --------
    >>> open_key_form("__key__").name, open_key_form("json:uid").needs_json
    ('webdataset', True)
    """
    if isinstance(key, KeyForm):
        return key
    if callable(key):
        name = f"{getattr(key, '__module__', '')}.{getattr(key, '__qualname__', type(key).__qualname__)}"
        return KeyForm(f"function {name}", needs_json=True, function=key)
    if key in ("webdataset", "__key__"):
        return KeyForm("webdataset")
    if key == "shard/key":
        return KeyForm(key)
    if isinstance(key, str) and key.startswith("json:") and key != "json:":
        return KeyForm(key, needs_json=True, field=key.removeprefix("json:"))
    raise ConfigError(f"key {key!r} is no form of a key", mend=f"give {_FORMS}")


def open_keep(keep: Any) -> Any:
    """What keys are looked up in: a `KeepTrie` for a path, else what was given, as a set where it is a list.

    Raises
    ------
    ConfigError
        When it cannot be asked for keys, or holds no texts.

    Examples
    --------
    >>> sorted(open_keep(["a", "b"]))
    ['a', 'b']
    """
    if isinstance(keep, (str, os.PathLike)):
        return KeepTrie.open(os.fspath(keep))
    if isinstance(keep, (list, tuple)):
        keep = frozenset(keep)
    elif hasattr(keep, "tolist"):  # of numpy and pandas, where `in` means something else
        keep = frozenset(keep.tolist())
    if not hasattr(type(keep), "__contains__"):
        raise ConfigError(
            f"keep is {type(keep).__name__}, which cannot be asked whether a key is in it",
            mend="give a KeepTrie, the path of a run, or a set of keys",
        )
    if isinstance(keep, (set, frozenset, dict)):
        other = next((key for key in islice(keep, _LOOKED_AT) if not isinstance(key, str)), None)
        if other is not None:
            raise ConfigError(
                f"keep holds {type(other).__name__} ({other!r}), and keys are looked up as text",
                mend="give a set of str",
            )
    return keep


def find_kept(keep: Any, keys: Collection[str]) -> npt.NDArray[np.bool_]:
    """Whether each of `keys` is in `keep`, of `open_keep`.

    Examples
    --------
    >>> find_kept({"a"}, ["a", "b"]).tolist()
    [True, False]
    """
    if hasattr(keep, "contains_many"):
        return np.asarray(keep.contains_many(keys), np.bool_)
    return np.fromiter((key in keep for key in keys), np.bool_, len(keys))


def _read_fields(content: Any) -> Fields | None:
    if isinstance(content, (bytes, bytearray, memoryview, str)):
        try:
            content = json.loads(content if isinstance(content, str) else bytes(content))
        except ValueError:
            raise NoKeyError("its json cannot be read") from None
    if content is not None and not isinstance(content, dict):
        raise NoKeyError("its json is no object")
    return content
