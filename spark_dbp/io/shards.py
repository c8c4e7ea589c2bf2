"""List the shards of a WebDataset, and notice when they change. Imports `listing`, `files` and `errors`.

pyspark is used where this process does not reach the shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.whole_files import MOST_BYTES, read_whole_files
from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.io.listing import expand_glob, is_hidden
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

SETTING = "embed.images.webdataset"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000
_WEB = ("http://", "https://")


@dataclass(frozen=True, order=True)
class Shard:
    """A tar.

    Attributes
    ----------
    path : str
        Absolute, or a URI.
    size : int
        Bytes.
    changed : int
        When, in microseconds.
    """

    path: str
    size: int
    changed: int


def list_shards(spark: SparkSession | None, patterns: Iterable[str], setting: str = SETTING) -> list[Shard]:
    """The tars that paths and globs name, in the order of their paths.

    Parameters
    ----------
    spark : SparkSession or None
        It lists what this process does not reach; without one, that is an error of the store.
    patterns : iterable of str
        Each a tar, a folder (whose ``.tar`` files are taken), a glob, or a range as webdataset writes it:
        ``shards/{00000..00127}.tar``. Of http and https only paths and ranges: they list nothing.
    setting : str
        Where the patterns were given, for messages.

    Returns
    -------
    list of Shard

    Raises
    ------
    InputError
        When a pattern names nothing, or a shard is named twice or is empty.
    """
    found: list[Shard] = []
    for pattern in patterns:
        of_this: list[Shard] = []
        for one in expand_ranges(pattern, setting):
            shards = _list_one(spark, one, setting)
            if not shards:
                raise InputError(
                    f"{setting} {pattern}: there is no shard {one}"
                    if one != pattern
                    else f"{setting} {pattern} names no .tar file",
                    mend="check the path; shards are tars, named by path, folder, glob or {00000..00127}",
                )
            of_this += shards
        found += of_this
    shards = sorted(found)
    twice = next((a.path for a, b in pairwise(shards) if a.path == b.path), None)
    if twice is not None:
        raise InputError(f"{setting}: shard {twice} is named twice", mend="name each shard once")
    empty = next((shard.path for shard in shards if shard.size == 0), None)
    if empty is not None:
        raise InputError(f"{setting}: shard {empty} has 0 bytes", mend="fetch it again, or delete it")
    return shards


def expand_ranges(pattern: str, setting: str = SETTING) -> list[str]:
    """Paths that a range of numbers in braces stands for.

    Raises
    ------
    InputError
        For a range that goes down, or is far too long.

    Examples
    --------
    >>> expand_ranges("s3://b/{08..10}.tar")
    ['s3://b/08.tar', 's3://b/09.tar', 's3://b/10.tar']
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not numbers or len(numbers) > _MOST_SHARDS:
        raise InputError(
            f"{setting} {pattern}: the range {found[0]} is {'empty' if not numbers else 'too long'}",
            mend="write {FIRST..LAST}, such as {00000..00127}",
        )
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for n in numbers for whole in expand_ranges(f"{before}{n:0{width}d}{after}", setting)]


def read_by_spark(spark: SparkSession, shards: Sequence[Shard], setting: str) -> DataFrame:
    """``path`` and ``content`` of shards that only Spark reaches.

    Raises
    ------
    InputError
        When one is too large for a value.
    """
    large = next((shard for shard in shards if shard.size > MOST_BYTES), None)
    if large is not None:
        raise InputError(
            f"{setting}: shard {large.path} has {large.size:,} bytes, and Spark, which alone reaches it, "
            "reads files as whole values of at most 1 GiB",
            mend="let workers reach the store themselves (a mount, credentials), or write smaller shards",
        )
    return read_whole_files(spark, [shard.path for shard in shards])


def digest_shards(shards: Iterable[Shard]) -> str:
    """Digest of paths, sizes and times."""
    rows = [(shard.path, shard.size, shard.changed) for shard in shards]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _list_one(spark: SparkSession | None, pattern: str, setting: str) -> list[Shard]:
    if pattern.startswith(_WEB):
        try:
            return [Shard(files.normalize(pattern), *files.look_up(pattern))]
        except FileNotFoundError:
            return []
    try:
        roots = [root for root, _ in expand_glob(pattern)]
        folders: dict[str, dict[str, tuple[int, int]]] = {}
        parents = sorted({posixpath.dirname(root) for root in roots} | set(roots))
        for path, inside in zip(parents, map_in_threads(_list_folder, parents), strict=True):
            folders[path] = inside
    except (OSError, SparkDbpError) as error:
        if spark is None:
            raise
        log.debug("Spark lists %s, for this process does not: %s", pattern, error)
        return _list_by_spark(spark, pattern, setting)
    found = []
    for root in roots:
        folder, name = posixpath.split(root)
        if name in folders[folder]:
            found.append(Shard(root, *folders[folder][name]))
        else:
            found += [
                Shard(files.join(root, name), *look)
                for name, look in folders[root].items()
                if name.endswith(".tar") and not is_hidden(name)
            ]
    return found


def _list_folder(path: str) -> dict[str, tuple[int, int]]:
    try:
        return files.list_changes(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _list_by_spark(spark: SparkSession, pattern: str, setting: str) -> list[Shard]:
    from pyspark.sql import functions as F

    with translate_errors(f"{setting} {pattern}", opening=True):
        reader = spark.read.format("binaryFile").option("pathGlobFilter", "*.tar")
        changed = F.unix_micros("modificationTime")
        rows = reader.load(pattern).select("path", "length", changed.alias("changed")).collect()
    return [Shard(files.normalize(row.path), row.length, row.changed) for row in rows]
