"""Look at the input without a session: listings, footers, a few rows. Imports `io`, `engine` and `lake`.

pyspark is imported for the names of its types only; no session is started.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from spark_dbp.columns import describe_type
from spark_dbp.config import RunConfig
from spark_dbp.config_base import name_column
from spark_dbp.engine.compat import from_arrow_schema
from spark_dbp.engine.expressions import find_names
from spark_dbp.engine.file_errors import Place, refuse_by_its_bytes
from spark_dbp.engine.file_scan import measure_group
from spark_dbp.engine.session import READ_SETTINGS
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.explore.plan.look_at_rows import SAMPLED_PLACES, sample_rows
from spark_dbp.explore.plan.look_at_shards import look_at_shards
from spark_dbp.explore.plan.seen import Count, OnlySparkError, Seen, Shape
from spark_dbp.io.centroids import GivenCentroids
from spark_dbp.io.footers import Columns, read_columns, refuse_unread
from spark_dbp.io.formats.dataset import open_dataset
from spark_dbp.io.formats.parts import Range, read_range
from spark_dbp.io.input_files import name_literally
from spark_dbp.io.listing import list_paths
from spark_dbp.io.passed_over import PassedOver, empty_files_error
from spark_dbp.io.sources import Snapshot, summarize_files
from spark_dbp.lake import files, parquet_files
from spark_dbp.lake.file_kinds import find_column_type
from spark_dbp.lake.paths import take_literally
from spark_dbp.lake.table_files import map_in_threads
from spark_dbp.pipeline import plan_opening
from spark_dbp.steps import Step

if TYPE_CHECKING:
    import pyarrow as pa

# More files than these are left to Spark, which lists them on the cluster.
_MOST_FILES = 20_000
# As Java writes a path as a URI: these stay, and what is not ASCII.
_STAY = "/-_.!~'()*;:@&=+$,"


def look(config: RunConfig, steps: Sequence[Step], check: Callable[[Seen], None]) -> Seen:
    """What this process sees of the input by itself.

    Parameters
    ----------
    config : RunConfig
    steps : sequence of Step
        From `plan_steps`.
    check : callable
        Refuses columns, before rows are read.

    Returns
    -------
    Seen

    Raises
    ------
    OnlySparkError
        When only Spark can look.
    ConfigError, InputError
        As a run would raise them.
    """
    given = config.input
    if given.table is not None:
        raise OnlySparkError(f"input.table {given.table} is a table of the catalog")
    try:
        if config.shards:
            seen = look_at_shards(config, _list_needed(config, steps))
        elif given.format != "parquet":
            seen = _look_at_dataset(config, steps, check)
        else:
            seen = _look_at_parquet(config, steps, check)
        if given.centroids is not None:
            _look_at_centroids(given.centroids, seen)
    except InputError:
        raise
    except (SparkDbpError, OSError) as error:
        if isinstance(error, ConfigError) and all(map(files.is_local, list_places(config))):
            raise
        raise OnlySparkError(f"this process does not reach it: {error}") from error
    named = {name: _write_setting(value) for name, value in config.spark.items()}
    seen.settings = {name: named[name] for name in READ_SETTINGS if name in named}
    return seen


def list_places(config: RunConfig) -> list[str]:
    """Where the input and its centroids are, normalized."""
    given = [*(config.shards or config.input.paths), config.input.centroids]
    return [files.normalize(place) for place in given if place is not None]


def _write_setting(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_sql_columns(config: RunConfig, steps: Iterable[Step], columns: Collection[str]) -> set[str]:
    """Columns that are SQL, whose types only a session knows: all but those that name a column itself."""
    how = plan_opening(config, steps, ())
    return {sql for _, sql in how["computed"] if not (sql in columns and sql.isidentifier())}


def _list_needed(config: RunConfig, steps: Iterable[Step]) -> list[str]:
    """Columns of the files that a run reads: by name, or as SQL names them."""
    how = plan_opening(config, steps, ())
    inside = [name for _, sql in how["computed"] for name in find_names(sql)]
    computed = {sql for _, sql in how["computed"]}
    return list(dict.fromkeys([*(name for name in how["columns"] if name not in computed), *inside]))


# Parquet.


def _look_at_parquet(config: RunConfig, steps: Sequence[Step], check: Callable[[Seen], None]) -> Seen:
    name = f"input.path {', '.join(config.input.paths)}"
    found = _list_files("input.path", name, config.input.paths)
    footers = dict(zip(found, map_in_threads(lambda path: _open(path, name), found), strict=True))
    snapshot = _summarize(footers)
    first = next((path for path in found if footers[path].metadata.num_rows), found[0])
    columns = read_columns(footers[first], _read_setting_of(config))
    needed = _list_needed(config, steps)
    refuse_unread(columns, f"{to_java_uri(first)} (input.path)", needed)
    shape = Shape(columns.schema).add_fields(needed)
    folders = {one.split("=")[0] for path in found for one in path.split("/")[:-1] if "=" in one}
    seen = Seen(name, Count(snapshot.rows), snapshot.files, snapshot.bytes, asdict(snapshot), shape)
    seen.unknown_columns = find_sql_columns(config, steps, shape.columns) | (
        folders - set(columns.schema.names)
    )
    if not snapshot.rows:
        raise InputError(f"{name}: there are no rows", mend="check input.path")
    stored, in_memory = _measure(footers.values())
    seen.stored = {column: n / snapshot.rows for column, n in stored.items()}
    tops = {column for column in in_memory for one in needed if f"{one}.".startswith(f"{column}.")}
    seen.in_memory = sum(in_memory[column] for column in tops) / snapshot.rows
    if config.input.filter is None and not seen.unknown_columns:
        seen.groups = [(path, _list_groups(footers[path].metadata, tops)) for path in found]
    score = name_column(config.score_filter.column) if config.score_filter is not None else None
    if score is not None and _is_full(footers.values(), score):
        seen.full_columns = {score}
    if config.input.cluster_id is not None:
        seen.most_clusters = _find_most(footers.values(), str(config.input.cluster_id))
    check(seen)
    _refuse_other_types(footers, first, columns, needed, name)
    groups = [
        (path, number)
        for path in found
        for number in range(footers[path].metadata.num_row_groups)
        if footers[path].metadata.row_group(number).num_rows
    ]
    chosen = groups[:: max(1, -(-len(groups) // SAMPLED_PLACES))]
    sample_rows(
        config, steps, seen, lambda names, n: [_read_first(*place, names, n, name) for place in chosen]
    )
    return seen


def _list_files(setting: str, name: str, paths: list[str]) -> list[str]:
    """The files that Spark would read, by their paths as Spark sorts them; what it would lose is refused."""
    listing = list_paths(name_literally(paths))
    if listing.unchecked:
        entry, why = next(iter(listing.unchecked.items()))
        raise OnlySparkError(f"this process cannot list {entry}: {why}")
    missing = [e for e, roots in listing.roots.items() if not roots or _is_missing(roots, listing.found, e)]
    if missing:
        uri = to_java_uri(files.normalize(missing[0]))
        raise InputError(
            f"no such path ({name}): Path does not exist: {uri}.",
            mend=f"check {setting}, and that Spark may read it",
        )
    passed = PassedOver(setting, listing, None)
    passed.check(list)
    empty = {one.path for one in listing.found if not one.size}
    found = sorted(passed.is_read - empty)
    if found and passed.is_read & empty:
        raise empty_files_error(setting, sorted(passed.is_read & empty))
    if len(found) > _MOST_FILES:
        raise OnlySparkError(f"{len(found):,} files are too many to look into from here")
    if not found:
        raise InputError(
            f"no Parquet files ({name}) that Spark reads",
            mend=f"check {setting}: Spark passes over empty files, names that begin with _ or ., and "
            "subfolders without a = in their name",
        )
    return found


def _is_missing(roots: list[str], found: list[Any], entry: str) -> bool:
    return not any(one.entry == entry for one in found) and not any(map(files.exists, roots))


def _open(path: str, name: str) -> Any:
    """The footer of a file; one that cannot be read is refused as Spark's error would be."""
    import pyarrow as pa

    try:
        return parquet_files.open_unencrypted(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise refuse_by_its_bytes(str(error), to_java_uri(path), Place(name, "")) from None


def to_java_uri(path: str) -> str:
    """A path as Spark writes it: ``file:/...``, and with the characters escaped that Java escapes.

    Examples
    --------
    >>> to_java_uri("/data/a b/ä%.parquet")
    'file:/data/a%20b/ä%25.parquet'
    """
    whole = re.sub("^file:/+", "/", path)

    def escape(one: str) -> str:
        is_plain = ord(one) > 127 and unicodedata.category(one) not in ("Zs", "Zl", "Zp", "Cc")
        return one if is_plain else quote(one, safe=_STAY)

    text = "".join(map(escape, whole))
    return f"file:{text}" if whole.startswith("/") else text


def _summarize(footers: dict[str, Any]) -> Snapshot:
    paths = [path for path, footer in footers.items() if footer.metadata.num_rows]
    looked = map_in_threads(files.look_up, paths)
    return summarize_files(
        (to_java_uri(path), *one, footers[path].metadata.num_rows)
        for path, one in zip(paths, looked, strict=True)
    )


def _measure(footers: Iterable[Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of every column in the files, and those that it takes when they are unpacked."""
    stored: dict[str, int] = defaultdict(int)
    in_memory: dict[str, int] = defaultdict(int)
    for footer in footers:
        for number in range(footer.metadata.num_row_groups):
            group = footer.metadata.row_group(number)
            for one in map(group.column, range(group.num_columns)):
                name = one.path_in_schema.split(".")[0]
                stored[name] += one.total_compressed_size
                in_memory[name] += one.total_uncompressed_size
    return stored, in_memory


def _list_groups(metadata: Any, columns: Collection[str]) -> list[tuple[int, int]]:
    return [measure_group(metadata.row_group(n), columns) for n in range(metadata.num_row_groups)]


def _find_most(footers: Iterable[Any], name: str) -> int | None:
    """The largest value of a column of whole numbers, and one; None where footers do not say."""
    found = [one.max if one is not None else None for one in _list_statistics(footers, name)]
    numbers = [value for value in found if isinstance(value, int)]
    most = max(numbers, default=-1)
    return most + 1 if most >= 0 and len(numbers) == len(found) else None


def _is_full(footers: Iterable[Any], name: str) -> bool:
    """Whether a column surely has no null and no NaN: statistics count nulls, and do not see NaN."""
    found = _list_statistics(footers, name)
    return bool(found) and all(
        one is not None and one.has_null_count and one.null_count == 0
        and one.physical_type not in ("FLOAT", "DOUBLE")
        for one in found
    )  # fmt: skip


def _list_statistics(footers: Iterable[Any], name: str) -> list[Any]:
    """Statistics of a column in all row groups; None where a group has none."""
    found = []
    for footer in footers:
        for number in range(footer.metadata.num_row_groups):
            group = footer.metadata.row_group(number)
            columns = map(group.column, range(group.num_columns))
            one = next((column for column in columns if column.path_in_schema == name), None)
            found.append(None if one is None else one.statistics)
    return found


def _refuse_other_types(
    footers: dict[str, Any], first: str, columns: Columns, needed: list[str], name: str
) -> None:
    """Refuse files in which a needed column is of another type than in the first file."""
    import pyarrow as pa

    types = {item.name: item.type for item in footers[first].schema_arrow}
    for path, footer in footers.items():
        schema = footer.schema_arrow
        for one in needed if footer.metadata.num_rows else ():
            at = schema.get_field_index(one)
            if one not in types or at < 0 or pa.types.is_null(types[one]):
                continue  # missing, or of a type that is refused by itself
            if not _are_alike(schema.field(at).type, types[one]):
                there, here = (_name_type(uri, one) for uri in (path, first))
                what = f"is {there} there and {here} in"
                if pa.types.is_null(schema.field(at).type):
                    kind = describe_type(columns.schema[one].dataType)
                    what = f"has no type there, because all its values are null; it is {kind} in"
                raise InputError(
                    f"{to_java_uri(path)} ({name}): column {one!r} {what} the file from which Spark took the "
                    "types (the first by name)",
                    mend="write all files with the same types, or give input.path those that agree",
                )


def _name_type(path: str, column: str) -> str:
    return (find_column_type(path, column) or "of another type").removeprefix("LIST of ")


def _are_alike(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether Spark reads both as the same: lists of any kind, long and short texts."""
    import pyarrow as pa

    return pa.types.is_nested(one) == pa.types.is_nested(other) and simplify_type(one) == simplify_type(other)


def simplify_type(data_type: pa.DataType) -> str:
    """An Arrow type without what is the same to Spark.

    Examples
    --------
    >>> import pyarrow as pa
    >>> simplify_type(pa.list_(pa.float32(), 8)) == simplify_type(pa.large_list(pa.float32()))
    True
    """
    text = str(data_type).replace("large_", "").replace("fixed_size_", "")
    text = re.sub(r"(?<=>)\[\d+\]", "", re.sub(r"dictionary<values=(\w+),.*?>", r"\1", text))
    return re.sub(r"<\w+: ", "<", text)


def _read_setting_of(config: RunConfig) -> Callable[[str], str | None]:
    values = {name: _write_setting(value) for name, value in config.spark.items()}
    return values.get


def _read_first(path: str, group: int, names: list[str], n_rows: int, name: str) -> pa.Table:
    """The first rows of a row group; of columns that the file lacks nulls, as Spark gives them."""
    import pyarrow as pa

    batches, left = [], n_rows
    try:
        for batch in parquet_files.iter_parquet(path, names, n_rows, 64 << 20, [group]):
            batches.append(batch.slice(0, left))
            left -= batches[-1].num_rows
            if left <= 0:
                break
    except (pa.ArrowException, OSError) as error:
        raise refuse_by_its_bytes(str(error), to_java_uri(path), Place(name, "")) from None
    table = pa.Table.from_batches(batches)
    for missing in names:
        if missing not in table.column_names:
            table = table.append_column(missing, pa.nulls(table.num_rows))
    return table.select(names)


# Formats of others.


def _look_at_dataset(config: RunConfig, steps: Sequence[Step], check: Callable[[Seen], None]) -> Seen:
    given = config.input
    dataset = open_dataset(given.format, given.paths, given.options.to_dict())
    snapshot = Snapshot(dataset.n_rows, len(dataset.files), dataset.n_bytes, dataset.digest)
    shape = Shape(from_arrow_schema(dataset.schema)).add_fields(_list_needed(config, steps))
    name = f"input.path {', '.join(given.paths)}"
    seen = Seen(name, Count(snapshot.rows), snapshot.files, snapshot.bytes, asdict(snapshot), shape)
    seen.unknown_columns = find_sql_columns(config, steps, shape.columns)
    seen.in_memory = snapshot.bytes_per_row
    check(seen)
    parts = [(number, part) for number, part in enumerate(dataset.parts) if part.n_rows]
    chosen = parts[:: max(1, -(-len(parts) // SAMPLED_PLACES))]

    def read(names: list[str], n: int) -> list[pa.Table]:
        import pyarrow as pa

        return [
            pa.Table.from_batches(
                list(read_range(part, Range(number, 0, min(n, part.n_rows)), names))
            ).select(names)
            for number, part in chosen
        ]

    sample_rows(config, steps, seen, read)
    return seen


# Centroids.


def _look_at_centroids(path: str, seen: Seen) -> None:
    """Number and dimension of the given centroids, and what changes when they do."""
    if path.endswith(".npy"):
        given = GivenCentroids(None, path)
        seen.centroids, seen.centroids_snapshot = given.read()[1].shape, given.take_snapshot()
    else:
        name = f"input.centroids {path}"
        found = _list_files("input.centroids", name, [take_literally(path)])
        footers = {one: _open(one, name) for one in found}
        snapshot = _summarize(footers)
        seen.centroids_snapshot = asdict(snapshot)
        if not snapshot.rows:
            raise InputError(f"{name} has no rows", mend="give one centroid a cluster")
        first = next(one for one in found if footers[one].metadata.num_rows)
        names = footers[first].schema_arrow.names
        for column in ("cluster_id", "centroid"):
            if column not in names:
                raise InputError(
                    f"{name}: there is no column {column!r}", mend=f"the table has: {', '.join(names[:30])}"
                )
        readable = read_columns(footers[first], lambda _: None)
        refuse_unread(readable, f"{to_java_uri(first)} (input.centroids)", ["cluster_id", "centroid"])
        rows = _read_first(first, 0, ["centroid"], 1, name).column(0)
        dimension = len(rows[0].as_py()) if rows[0].is_valid else 0
        seen.centroids = snapshot.rows, dimension or seen.dimension or 0
        seen.unchecked.append("input.centroids: only its number of rows was read, not its values")
    if seen.dimension is not None and seen.centroids[1] != seen.dimension:
        raise InputError(
            f"input.centroids {path} has dimension {seen.centroids[1]}, the embeddings have {seen.dimension}",
            mend="give the centroids that these embeddings were clustered with",
        )
