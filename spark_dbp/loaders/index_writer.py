"""Write an index of shards: where kept samples lie. Imports `index_shard`, `keys`, `files` and `errors`.

An index is a directory:

- ``index.json`` says what it is, and how many shards and samples it has; it is written last.
- ``shards.parquet`` has a row for each shard.
- ``samples/*.parquet`` have a row for each kept sample. A row group holds the samples of one shard.

`write_index` makes one in this process. A job calls `index_shard` and `SampleWriter` in its workers, and then
`finish_index`. pyarrow is imported inside functions.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

from spark_dbp.errors import ConflictError, InputError
from spark_dbp.lake import files
from spark_dbp.loaders import stores
from spark_dbp.loaders.index_shard import SampleWriter, ShardRow, index_shard, shards_schema
from spark_dbp.loaders.keys import KeyForm, KeyFunction, open_keep, open_key_form

FORMAT, VERSION = "spark-dbp shard index", 1
MANIFEST, SHARDS = "index.json", "shards.parquet"

_EXAMPLES = 5


def finish_index(
    out: str, rows: Iterable[ShardRow], *, key: str = "webdataset", run: str = "", keep_list_digest: str = ""
) -> dict[str, Any]:
    """Write the table of shards, and then ``index.json``, with which the index is there.

    Parameters
    ----------
    out : str
        The directory.
    rows : iterable of ShardRow
        Of all shards, in any order.
    key : str
        How keys were made: the name of a `KeyForm`.
    run, keep_list_digest : str
        The run whose keys these are.

    Returns
    -------
    dict
        Content of ``index.json``.
    """
    import pyarrow as pa

    from spark_dbp.lake.parquet_files import write_parquet_file

    base = files.normalize(out)
    ordered = sorted(rows)
    columns = list(zip(*ordered, strict=True)) if ordered else [()] * len(ShardRow._fields)
    schema = shards_schema()
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    write_parquet_file(files.join(base, SHARDS), pa.Table.from_arrays(arrays, schema=schema))
    info = {
        "format": FORMAT,
        "version": VERSION,
        "n_shards": len(ordered),
        "n_samples": sum(row.samples for row in ordered),
        "n_kept": sum(row.kept for row in ordered),
        "bytes": sum(row.bytes for row in ordered),
        "kept_bytes": sum(row.kept_bytes for row in ordered),
        "key": key,
        "run": run,
        "keep_list_digest": keep_list_digest,
    }
    files.write_bytes(files.join(base, MANIFEST), json.dumps(info, indent=2).encode())
    return info


@dataclass(frozen=True)
class IndexReport:
    """What `write_index` wrote and found.

    Attributes
    ----------
    info : dict
        Content of ``index.json``.
    missing : int or None
        Kept keys that no shard has; None where `keep` does not say how many keys it holds.
    missing_examples : list of str
    twice : int
        Kept keys that more than one sample has. All these samples are in the index.
    twice_examples : list of str
    without_key : int
        Samples from which no key can be made.
    without_key_example : str
    """

    info: dict[str, Any]
    missing: int | None
    missing_examples: list[str] = field(default_factory=list)
    twice: int = 0
    twice_examples: list[str] = field(default_factory=list)
    without_key: int = 0
    without_key_example: str = ""


def write_index(
    out: str | os.PathLike[str],
    shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    keep: Any,
    *,
    key: str | KeyFunction | KeyForm = "webdataset",
    run: str = "",
    keep_list_digest: str = "",
    storage_options: stores.Options | None = None,
) -> IndexReport:
    """Index shards in this process, one after the other.

    ``spark-dbp index`` does the same on Spark's workers. Here the kept keys that were found are held in
    memory, 16 bytes of each.

    Parameters
    ----------
    out : str
        The directory to write; local or a URI.
    shards : str or sequence of str
        Tars; a local folder of ``.tar`` files; a local glob.
    keep : KeepTrie, set, or path of a run
    key : str or callable
        ``webdataset``, ``json:FIELD``, ``shard/key``, or a function of (sample's key, its json as a dict or
        None, path of the shard).
    run, keep_list_digest : str
        Noted in ``index.json``.
    storage_options : mapping, optional
        Of fsspec.

    Returns
    -------
    IndexReport

    Raises
    ------
    InputError
        When there is no shard, or one is no whole tar.
    ConflictError
        When there is an index at `out`.

    Examples
    --------
    >>> report = write_index("index", "shards/", "run")  # doctest: +SKIP
    >>> report.info["n_kept"], report.missing  # doctest: +SKIP
    (3000, 0)
    """
    form, keep = open_key_form(key), open_keep(keep)
    base = files.normalize(os.fspath(out))
    if files.exists(files.join(base, MANIFEST)):
        raise ConflictError(f"there is an index at {base}", mend="name another directory, or delete it first")
    paths = _list_paths(shards)
    rows: list[ShardRow] = []
    found: Counter[bytes] = Counter()
    twice: dict[str, None] = {}
    without, example = 0, ""
    with SampleWriter(base, "part") as writer:
        for number, path in enumerate(paths):
            shard = index_shard(path, keep, form, number=number, storage_options=storage_options)
            rows.append(writer.add(shard, number))
            for text, digest in zip(shard.found, _digest_texts(keep, shard.found), strict=True):
                found[digest] += 1
                if found[digest] == 2:
                    twice[text] = None
            without += shard.without_key
            example = example or shard.without_key_example
    info = finish_index(base, rows, key=form.name, run=run, keep_list_digest=keep_list_digest)
    missing = len(keep) - len(found) if hasattr(keep, "__len__") else None
    examples = heapq.nsmallest(_EXAMPLES, _find_missing(keep, found)) if missing else []
    return IndexReport(info, missing, examples, len(twice), list(twice)[:_EXAMPLES], without, example)


def _digest_texts(keep: Any, texts: list[str]) -> Iterator[bytes]:
    stored = keep.list_texts(texts) if hasattr(keep, "list_texts") else map(str.encode, texts)
    return (hashlib.blake2b(text, digest_size=16).digest() for text in stored)


def _find_missing(keep: Any, found: Counter[bytes]) -> Iterator[str]:
    texts = keep.iter_texts() if hasattr(keep, "iter_texts") else None
    if texts is None:
        texts = map(str.encode, keep) if hasattr(keep, "__iter__") else ()
    for text in texts:
        if hashlib.blake2b(text, digest_size=16).digest() not in found:
            yield text.decode("utf-8", "replace")


def _list_paths(shards: Any) -> list[str]:
    if isinstance(shards, (str, os.PathLike)):
        given = os.fspath(shards)
        if files.is_local(given) and Path(files.normalize(given)).is_dir():
            given = f"{files.normalize(given)}/*.tar"
        named = sorted(glob(given)) if files.is_local(given) and "*" in given else [given]  # noqa: PTH207
    else:
        named = [os.fspath(path) for path in shards]
        given = "shards"
    if not named:
        raise InputError(f"{given} names no shard", mend="give tars, a folder of .tar files, or a glob")
    paths = sorted(files.normalize(path) for path in named)
    twice = next((one for one, two in pairwise(paths) if one == two), None)
    if twice is not None:
        raise InputError(f"shard {twice} is named twice", mend="name each shard once")
    return paths
