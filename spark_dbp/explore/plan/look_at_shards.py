"""Look at the shards of a WebDataset: sizes, and the headers of a few. Imports `io`, `lake` and `seen`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from spark_dbp.columns import JSON, KEY, TXT
from spark_dbp.config import RunConfig
from spark_dbp.explore.plan.seen import UNKNOWN, Count, Seen, Shape
from spark_dbp.io.shards import Shard, digest_shards, list_shards
from spark_dbp.lake import files
from spark_dbp.lake.store import EarlierSteps
from spark_dbp.lake.tar_samples import read_tar_samples

# Shards whose headers are walked, and seconds after which no other one is begun.
_FEW, _SECONDS = 16, 2.0


def look_at_shards(config: RunConfig, needed: Sequence[str]) -> Seen:
    """Number of samples, from the headers of a few shards and the sizes of all; exact where these are all.

    Where an earlier run in the same place has listed the same shards, it knows the number.
    """
    import pyarrow as pa
    from pyspark.sql import types as T

    shards = list_shards(None, config.shards)
    digest = digest_shards(shards)
    keys, walked = _walk(shards)
    n_bytes = sum(shard.size for shard in shards)
    seen = Seen(f"embed.images.webdataset {', '.join(config.shards)}", Count(0), len(shards), n_bytes)
    seen.shards = digest
    known = _find_listed(config.output.path, digest)
    if known is not None:
        seen.rows = Count(known)
    elif walked == n_bytes:
        seen.rows = Count(len(keys))
    else:
        seen.rows = Count(round(len(keys) * n_bytes / max(1, walked)), "about")
        seen.notes.append(f"samples: counted in {walked / n_bytes:.0%} of the bytes of the shards")
    rows = UNKNOWN if seen.rows.kind == "about" else seen.rows.n
    seen.snapshot = {"rows": rows, "files": len(shards), "bytes": n_bytes, "digest": digest, "version": None}
    seen.in_memory = n_bytes / max(1, seen.rows.n)
    seen.shape = Shape(T.StructType([T.StructField(name, T.StringType()) for name in (KEY, TXT, JSON)]))
    seen.unknown_columns = set(needed) - {KEY, TXT, JSON}
    seen.sample = pa.table({KEY: keys})
    return seen


def _find_listed(path: str, digest: str) -> int | None:
    from spark_dbp.lake.marks import hash_value

    known = EarlierSteps(files.normalize(path)).read_earlier("list_shards")
    if known is None or known.depends.get("the shards") != hash_value(digest)[:16]:
        return None
    return known.rows.get("shard_samples")


def _walk(shards: Sequence[Shard]) -> tuple[list[str], int]:
    """Keys of the samples of some shards, spread over all; and how many bytes of shards were walked over."""
    keys: list[str] = []
    n_bytes = 0
    until = time.monotonic() + _SECONDS
    for shard in shards[:: max(1, -(-len(shards) // _FEW))]:
        with files.reached(shard.path) as (filesystem, inner), filesystem.open_input_file(inner) as content:
            for sample in read_tar_samples(content, shard.path, size=shard.size, with_texts=False):
                keys.append(sample.key)
                if time.monotonic() > until:
                    return keys, n_bytes + sample.stop
        n_bytes += shard.size
    return keys, n_bytes
