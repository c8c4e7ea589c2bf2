"""Read configuration files and settings of the command line.

Imports yaml, `files`, `secrets` and `errors`; never pyspark.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from spark_dbp.errors import ConfigError
from spark_dbp.lake import files
from spark_dbp.secrets import HIDDEN, is_secret_name, redact


class _Loader(yaml.SafeLoader):
    """Loads YAML, and refuses a key that is given twice, because one of the values would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    ConfigError
        When there is no such file, or it holds something else.
    """
    name = os.fspath(path)
    try:
        content = _load_yaml(_read_text(name))
    except OSError as error:
        raise ConfigError(
            f"cannot read {name}: {error.strerror or error}",
            mend="give the path of a YAML file; conf/example.yaml is one",
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{name} is nested too deeply for a configuration", mend="conf/example.yaml shows the form"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" line {place.line + 1}" if place else ""
        raise ConfigError(
            f"{name}{where} is not valid YAML: {getattr(error, 'problem', None) or error}",
            mend="conf/example.yaml shows the form",
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name} holds no mapping of sections", mend="conf/example.yaml shows the form")
    return content


def _read_text(path: str) -> str:
    """The text of a file, on this machine or in a store: a cluster's driver has no file of yours."""
    if files.is_local(path):
        return Path(files.normalize(path)).read_text(encoding="utf-8")
    return files.read_bytes(path).decode("utf-8")


def apply_settings(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=value`` items, with values in YAML, to the nested `values`. Returns a new dict.

    What follows ``spark.`` is one name: ``spark.spark.driver.memory=4g``, or in short
    ``spark.driver.memory=4g``.

    Raises
    ------
    ConfigError
        For an item without ``=`` or a path through a plain value.

    Examples
    --------
    >>> apply_settings({"prune": {"keep_ratio": 0.3}}, ["prune.keep_ratio=0.2"])
    {'prune': {'keep_ratio': 0.2}}
    """
    result = dict(values)
    for item in settings:
        path, equals, text = item.partition("=")
        if not equals or not path.strip():
            raise ConfigError(
                f"--set {item!r} is not of the form section.key=value",
                mend="write --set prune.keep_ratio=0.2",
            )
        parts = path.strip().split(".")
        if parts[0] == "spark":
            rest = ".".join(parts[1:])
            parts = ["spark", rest if rest.startswith("spark.") else f"spark.{rest}"]
        try:
            value = _load_yaml(text)
        except yaml.YAMLError:
            value = text
        node = result
        for part in parts[:-1]:
            section = node.get(part)
            if isinstance(section, list):
                raise ConfigError(
                    f"--set {item!r}: {part!r} is a list here, of which no item can be changed",
                    mend=f"change it in the file, or give the whole list: --set '{part}=[{{...}}, {{...}}]'",
                )
            if not isinstance(section, dict | None):
                raise ConfigError(
                    f"--set {item!r}: {part!r} is a value, not a section",
                    mend="every key is described in conf/example.yaml",
                )
            node[part] = dict(section or {})  # a copy, so that `values` stays as it is
            node = node[part]
        node[parts[-1]] = value
    return result


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Words of a command line without the secrets in them, whatever characters these have.

    Examples
    --------
    >>> redact_arguments(["run", "--set", "spark.my.password=a,b c", "spark={x.token: t, y: 1}"])
    ['run', '--set', 'spark.my.password=(redacted)', 'spark={x.token: (redacted), y: 1}']
    """
    return [_redact_word(word) for word in arguments]


def _redact_word(word: str) -> str:
    for at in (found.start() for found in re.finditer("=", word)):
        if is_secret_name(word[:at]):
            return f"{word[: at + 1]}{HIDDEN}"
        if word[at + 1 : at + 2] in ("{", "["):
            try:
                content = redact(_load_yaml(word[at + 1 :]))
            except (yaml.YAMLError, RecursionError):
                content = HIDDEN  # whatever it is
            flow = yaml.safe_dump(content, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
            return f"{word[: at + 1]}{flow.removesuffix('...' + chr(10)).strip()}"
    return str(redact(word))
