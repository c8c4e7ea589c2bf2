"""Paths as people write them: home directories, URIs, and the globs of Hadoop. Imports `files`.

A path of ``input.path`` is a glob to Spark as soon as it holds one of ``{}[]*?\\``. A backslash takes the
special meaning from the character that follows it.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise

from spark_dbp.lake import files

_SPECIAL = "{}[]*?\\"
# Stores whose URI names a bucket or a container where others have a host, or nothing.
_WITH_BUCKET = ("s3", "s3a", "s3n", "gs", "abfs", "abfss", "wasb", "wasbs", "oss", "cosn", "obs")
_SCHEMES = (*_WITH_BUCKET, "file", "dbfs", "hdfs", "webhdfs", "viewfs")
_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)


def expand_home(path: str) -> str:
    """`path` with ``~`` or ``~user`` at its beginning replaced by that home directory.

    Raises
    ------
    ValueError
        When there is no such user.

    Examples
    --------
    >>> expand_home("~/x") == os.path.expanduser("~/x"), expand_home("a/~b")
    (True, 'a/~b')
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  (Path would turn ./~x into ~x)
    if expanded.startswith("~"):
        raise ValueError(f"{path!r} names the home directory of nobody here; write ./{path} if it is a name")
    return expanded


def find_better_form(path: str) -> str | None:
    """How to write a path whose form Spark or this program takes for another one; None where it is right.

    Examples
    --------
    >>> find_better_form("s3:/bucket/x"), find_better_form("file://data/x")
    ('s3://bucket/x', 'file:///data/x')
    >>> find_better_form("dbfs:/x") is None
    True
    """
    found = _PARTS.fullmatch(path)
    if not found:
        return None
    scheme, slashes, rest = found.groups()
    lower = scheme.lower()
    if not slashes and lower not in _SCHEMES:
        return None  # a colon in a name
    if lower in _WITH_BUCKET:
        right = f"{lower}://{rest}"
    elif lower == "file":
        right = path if scheme == lower and len(slashes) not in (0, 2) else f"file:///{rest}"
    else:
        right = f"{lower}:{slashes or '///'}{rest}"
    return None if right == path else right


def has_glob(path: str) -> bool:
    """Whether Spark takes `path` for a glob.

    Examples
    --------
    >>> has_glob("/data/2024"), has_glob("/data/[2024]")
    (False, True)
    """
    return any(character in _SPECIAL for character in path)


def escape_glob(path: str) -> str:
    r"""The glob that names exactly `path`.

    Examples
    --------
    >>> escape_glob("/data/x [v2]")
    '/data/x \\[v2\\]'
    """
    return re.sub(r"([{}\[\]*?\\])", r"\\\1", path)


def unescape_glob(pattern: str) -> str:
    """Undo `escape_glob`."""
    return re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL)


def is_literal(pattern: str) -> bool:
    """Whether a glob names one path only: all its special characters are escaped."""
    return not has_glob(re.sub(r"\\.", "", pattern, flags=re.DOTALL))


def to_spark_source(path: str) -> str:
    """`path` of a table of ours as Spark needs it to read, for which it takes every path for a glob."""
    return escape_glob(files.to_spark_path(path))


def take_literally(path: str) -> str:
    """`path` as a glob for Spark: with its special characters escaped where it exists as it is written.

    Only a local disk is looked at. Names on other stores are globs.
    """
    if not has_glob(path) or not files.is_local(path):
        return path
    return escape_glob(path) if os.path.lexists(files.normalize(path)) else path


def expand_braces(pattern: str) -> list[str]:
    """Globs without a slash in braces that together name what `pattern` names, as Hadoop expands them.

    Examples
    --------
    >>> expand_braces("/x/{a/b,c}/{d,e}")
    ['/x/a/b/{d,e}', '/x/c/{d,e}']
    """
    depth, start, cuts = 0, 0, []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
            if depth == 1:
                start, cuts = position, [position]
        elif character == "," and depth == 1:
            cuts.append(position)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0 and "/" in pattern[start:position]:
                cuts.append(position)
                parts = [pattern[one + 1 : two] for one, two in pairwise(cuts)]
                before, after = pattern[:start], pattern[position + 1 :]
                return [whole for part in parts for whole in expand_braces(before + part + after)]
        position += 1
    return [pattern]


def compile_name(pattern: str) -> re.Pattern[str]:
    """The regular expression of a glob without slashes, as Hadoop's GlobPattern makes it.

    Raises
    ------
    ValueError
        When a bracket or a brace is not closed.

    Examples
    --------
    >>> bool(compile_name("{a,b}[!_]*").fullmatch("bc")), bool(compile_name(r"\\[v2\\]").fullmatch("[v2]"))
    (True, True)
    """
    regex, in_set, braces, position = "", False, 0, 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
            regex += re.escape(pattern[position : position + 1])
        elif character == "*":
            regex += "*" if in_set else ".*"
        elif character == "?":
            regex += "?" if in_set else "."
        elif character == "{" and not in_set:
            regex, braces = regex + "(?:", braces + 1
        elif character == "," and braces:
            regex += "|"
        elif character == "}" and braces:
            regex, braces = regex + ")", braces - 1
        elif character == "[" and not in_set:
            regex, in_set = regex + "[", True
        elif character in "!^" and in_set and pattern[position - 1] == "[":
            regex += "^"
        elif character == "]" and in_set:
            regex, in_set = regex + "]", False
        elif character == "-" and in_set:
            regex += "-"
        else:
            regex += re.escape(character)
        position += 1
    if in_set or braces:
        raise ValueError(f"a bracket of {pattern!r} is not closed")
    try:
        return re.compile(regex, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no glob: {error}") from None


def locate(path: str) -> str:
    """One absolute spelling for each local path; one scheme for each store. Links are followed."""
    if path.startswith("dbfs:"):
        path = "/dbfs/" + path[len("dbfs:") :].lstrip("/")  # Databricks mounts it there
    if files.is_local(path):
        return os.path.realpath(files.normalize(path))
    return re.sub(r"^s3[an]://", "s3://", files.normalize(path))


def locate_globs(path: str) -> list[str]:
    """The globs, each with an absolute beginning, that together name what `path` of ``input.path`` names."""
    found = []
    for pattern in expand_braces(take_literally(path)):
        names = pattern.split("/")
        n_plain = next((i for i, name in enumerate(names) if not is_literal(name)), len(names))
        begin = unescape_glob("/".join(names[:n_plain])) or ("/" if path.startswith("/") else ".")
        found.append("/".join([escape_glob(locate(begin)).rstrip("/"), *names[n_plain:]]).rstrip("/"))
    return found


def lies_in(path: str, pattern: str) -> bool:
    """Whether `path` is what a glob of `locate_globs` names, or lies below it.

    Examples
    --------
    >>> lies_in("/x/run/2", "/x/{run,r}"), lies_in("/x", "/x/*")
    (True, False)
    """
    names, wanted = path.split("/"), pattern.split("/")
    try:
        return len(names) >= len(wanted) and all(
            compile_name(one).fullmatch(name) for one, name in zip(wanted, names, strict=False)
        )
    except ValueError:
        return False  # Spark refuses the glob


def lies_around(path: str, pattern: str) -> bool:
    """Whether all that a glob of `locate_globs` names lies below `path`.

    Examples
    --------
    >>> lies_around("/x/run", "/x/run/*"), lies_around("/x/run", "/x/*/y")
    (True, False)
    """
    return escape_glob(path) != pattern and f"{pattern}/".startswith(f"{escape_glob(path).rstrip('/')}/")
