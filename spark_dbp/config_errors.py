"""Say what is wrong with a configuration, key by key. Imports pydantic; never pyspark."""

from __future__ import annotations

import datetime
import difflib
import reprlib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain_errors(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each key that is wrong; the nearest known name for an unknown one.

    Parameters
    ----------
    error : ValidationError
    model : type
        The model of the whole configuration.

    Returns
    -------
    list of str
    """
    lines = []
    unquoted = set()
    # A name that YAML reads as something else comes first: other forms of the value were not meant then.
    for item in sorted(error.errors(include_url=False), key=lambda item: not _is_yaml_word(item["input"])):
        # Of the forms that a column may have, only the one that was meant counts: a mapping is SQL.
        if ("SqlColumn" in item["loc"] or "str" in item["loc"]) and (
            ("SqlColumn" in item["loc"]) != _is_in_mapping(item)
        ):
            continue
        parts = [str(part) for part in item["loc"] if not _is_union_branch(part)]
        path = ".".join(parts)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _known_keys(model, parts[:-1])
            near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
            message = f"unknown key {path!r}" + (
                f"; did you mean {'.'.join([*parts[:-1], near[0]])!r}?"
                if near
                else f"; known here: {', '.join(known)}"
            )
            lines.append(message)
        elif item["type"] == "missing":
            lines.append(f"{path}: is missing")
        elif item["type"] == "string_type" and parts[0] != "spark" and _is_yaml_word(item["input"]):
            lines.append(_explain_yaml_word(path, item["input"]))
            unquoted.add(path)
        elif any(path == known or known.startswith(f"{path}.") for known in unquoted):
            continue  # another form that the value might have had
        elif path and item["type"] != "value_error":
            # Any Spark setting may be a secret, whatever its name.
            got = "" if parts[0] == "spark" else f" (got {reprlib.repr(item['input'])})"
            lines.append(f"{path}: {message}{got}")
        elif path and not message.startswith((path.split(".")[0] + ".", "give ")):
            lines.append(f"{path}: {message}")
        else:
            lines.append(message)
    return list(dict.fromkeys(lines))


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "bool", "SqlColumn") or "[" in part)


def _is_in_mapping(item: Any) -> bool:
    """Whether the value of the column that an error is about is a mapping."""
    is_last = item["loc"][-1] in ("SqlColumn", "str")
    return isinstance(item["input"], Mapping) if is_last else True


def _is_yaml_word(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | datetime.date)


def _explain_yaml_word(path: str, value: Any) -> str:
    """A name without quotes that YAML reads as something else: ``key: no``."""
    if value is None:
        return f"{path}: is empty; leave the line out for the default"
    kind, written = {
        bool: ("the truth value", "yes" if value else "no"),
        int: ("the number", str(value)),
        float: ("the number", str(value)),
    }.get(type(value), ("the date", str(value)))
    name = path.rpartition(".")[2]
    return f"{path}: YAML reads {kind} {str(value).lower()} here, not a text; put quotes around it: " + (
        f"'{written}'" if name.isdigit() else f"{name}: '{written}'"
    )


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        if part.isdigit():  # of a list of sections
            continue
        annotation = model.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
