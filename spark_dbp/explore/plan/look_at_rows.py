"""Look at some rows of the input: check them as `ingest` will, and keep keys and columns to measure them.

Imports `seen`, `config`, `columns`, a name of `stages`, and kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, DIMENSION, DISTANCE, KEY, PROBLEM, VECTOR, name_carried
from spark_dbp.config import RunConfig
from spark_dbp.config_base import name_column
from spark_dbp.errors import InputError
from spark_dbp.explore.plan.seen import Seen, Shape
from spark_dbp.stages.check_samples import WRONG_DIMENSION
from spark_dbp.steps import Step

if TYPE_CHECKING:
    import pyarrow as pa

# Rows whose keys and carried columns are read, from each of so many places; and those that are checked.
SAMPLED_ROWS, SAMPLED_PLACES, CHECKED_ROWS = 4096, 8, 64


def name_samples(config: RunConfig, steps: Sequence[Step]) -> dict[str, str]:
    """Columns of the input that travel into ``samples``, by the names that they have there."""
    given = config.input
    needed = {name for step in steps for name in step.needs.columns}
    carried = dict.fromkeys(name for step in steps for name in step.needs.carried)
    names = {
        KEY: str(given.key),
        VECTOR: None if config.embeds_main else str(given.embedding),
        CLUSTER_ID: name_column(given.cluster_id),
        DISTANCE: name_column(given.distance_to_centroid),
    }
    names |= {name_carried(number): name for number, name in enumerate(carried)}
    return {new: name for new, name in names.items() if name is not None and name in needed}


def sample_rows(
    config: RunConfig,
    steps: Sequence[Step],
    seen: Seen,
    read: Callable[[list[str], int], list[pa.Table]],
) -> None:
    """Read some rows, check them as `ingest` will, and keep keys and carried columns to measure them."""
    import pyarrow as pa

    shape = seen.shape
    assert shape is not None
    wanted = {
        new: name
        for new, name in name_samples(config, steps).items()
        if seen.is_known(name) and name in shape.columns
    }
    plain = {new: name for new, name in wanted.items() if not _is_field(shape, name)}
    few = [name for new, name in plain.items() if new in (KEY, CLUSTER_ID, DISTANCE, VECTOR)]
    many = {new: name for new, name in plain.items() if new not in (VECTOR, CLUSTER_ID, DISTANCE)}
    try:
        if few:
            checked = _join(read(list(dict.fromkeys(few)), CHECKED_ROWS))
            rows = {new: checked.column(plain[new]) for new in plain if plain[new] in few}
            if KEY not in rows:  # only a session makes the keys
                rows = {KEY: pa.array([f"row {number}" for number in range(len(checked))]), **rows}
            check_rows(config, seen, pa.table(rows))
        if many:
            table = _join(read(list(dict.fromkeys(many.values())), SAMPLED_ROWS))
            seen.sample = pa.table({new: table.column(name) for new, name in many.items()})
    except (pa.ArrowException, ValueError) as error:
        seen.unchecked.append(f"rows: this process does not read them as Spark does ({error})")


def _is_field(shape: Shape, name: str) -> bool:
    """Whether a column is a field of a struct, which files have no column for."""
    return any(name.startswith(f"{other}.") for other in shape.columns if other != name)


def _join(tables: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="permissive")


def check_rows(config: RunConfig, seen: Seen, rows: pa.Table) -> None:
    """Check some rows as `ingest` will, and take the dimension from them.

    Raises
    ------
    InputError
        When a row is bad, and would not be left out by ``input.on_bad_rows`` or perhaps by a filter.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from spark_dbp.kernels.samples import make_samples
    from spark_dbp.kernels.vectors import is_embedding_type

    rows = _cast_vectors(rows)
    if VECTOR in rows.column_names and not is_embedding_type(rows.schema.field(VECTOR).type):
        rows = rows.drop_columns([VECTOR])
    for name, data_type in ((CLUSTER_ID, pa.int64()), (DISTANCE, pa.float64())):
        if name in rows.column_names:
            at = rows.column_names.index(name)
            rows = rows.set_column(at, name, rows.column(name).cast(data_type))
    batches = rows.combine_chunks().to_batches()
    binary_type = config.input.embedding_binary or "float32"
    made = pa.Table.from_batches(list(make_samples(iter(batches), binary_type)))
    seen.n_checked = made.num_rows
    if DISTANCE in made.column_names and made.num_rows > 1:
        seen.distance_spread = pc.stddev(made.column(DISTANCE)).as_py()
    found = made.column(DIMENSION).to_pylist() if DIMENSION in made.column_names else []
    problems = made.column(PROBLEM).to_pylist()
    dimensions = Counter(d for d, problem in zip(found, problems, strict=False) if problem is None)
    seen.dimension = max(dimensions, key=lambda d: (dimensions[d], d), default=None)
    for row, dimension in enumerate(found):
        if problems[row] is None and dimension != seen.dimension:
            problems[row] = WRONG_DIMENSION
    bad = [row for row, problem in enumerate(problems) if problem is not None]
    if not bad:
        return
    what = describe_bad_rows(Counter(problems[row] for row in bad), seen.dimension, dimensions)
    what += f", of {made.num_rows:,} that were looked at; such as key {made.column(KEY)[bad[0]].as_py()!r}"
    if config.input.on_bad_rows == "fail" and config.input.filter is None:
        raise InputError(
            f"{seen.name} has rows that cannot be used: {what}",
            mend="mend them, leave them out with input.filter, or set input.on_bad_rows: drop",
        )
    seen.notes.append(f"bad rows: {what}")


def describe_bad_rows(problems: Counter[str], dimension: int | None, dimensions: Iterable[int | None]) -> str:
    """What is wrong with rows, and with how many.

    Examples
    --------
    >>> describe_bad_rows(Counter({"null key": 1, WRONG_DIMENSION: 2}), 4, [4, 2])
    'null key: 1 row; embedding of another dimension: 2 rows (2 where most have 4)'
    """
    others = ", ".join(str(d) for d in sorted({d for d in dimensions if d is not None} - {dimension}))
    return "; ".join(
        f"{problem}: {n:,} row{'s' if n > 1 else ''}"
        + (f" ({others} where most have {dimension})" if problem == WRONG_DIMENSION else "")
        for problem, n in problems.items()
    )


def _cast_vectors(rows: pa.Table) -> pa.Table:
    """Whole numbers in lists as Spark hands them on: DOUBLE."""
    import pyarrow as pa

    if VECTOR not in rows.column_names:
        return rows
    given = rows.schema.field(VECTOR).type
    if pa.types.is_fixed_size_list(given) or pa.types.is_list(given) or pa.types.is_large_list(given):
        inner = given.value_type
        if pa.types.is_integer(inner) or pa.types.is_decimal(inner) or pa.types.is_float16(inner):
            kind = pa.float32() if pa.types.is_float16(inner) else pa.float64()
            at = rows.column_names.index(VECTOR)
            return rows.set_column(at, VECTOR, rows.column(VECTOR).cast(pa.list_(kind)))
    return rows
