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
from spark_dbp.explore.plan.seen import Seen
from spark_dbp.explore.plan.take_fields import find_top, take_field, take_vectors
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
    few = {new: name for new, name in wanted.items() if new in (KEY, CLUSTER_ID, DISTANCE, VECTOR)}
    many = {new: name for new, name in wanted.items() if new not in (VECTOR, CLUSTER_ID, DISTANCE)}
    tops = [name for name in shape.columns if name not in shape.fields]
    try:
        if few:
            rows = _read_some(tops, few, read, CHECKED_ROWS)
            if KEY not in rows.column_names:  # only a session makes the keys
                rows = rows.add_column(0, KEY, pa.array([f"row {number}" for number in range(len(rows))]))
            check_rows(config, seen, rows)
        if many:
            seen.sample = _read_some(tops, many, read, SAMPLED_ROWS)
    except (pa.ArrowException, ValueError) as error:
        seen.unchecked.append(f"rows: this process does not read them as Spark does ({error})")


def _read_some(
    tops: list[str],
    names: dict[str, str],
    read: Callable[[list[str], int], list[pa.Table]],
    n_rows: int,
) -> pa.Table:
    """Some rows of columns, and of fields of structs, which files have no column for."""
    import pyarrow as pa

    found = {new: find_top(tops, name) for new, name in names.items()}
    table = pa.concat_tables(
        read(list(dict.fromkeys(top for top in found.values() if top is not None)), n_rows),
        promote_options="permissive",
    )
    columns = {}
    for new, top in found.items():
        if top is None:
            continue
        column, rest = table.column(top), names[new][len(top) + 1 :]
        taken = take_field(column, rest) if rest else column
        if taken is not None:
            columns[new] = taken
    return pa.table(columns)


def check_rows(config: RunConfig, seen: Seen, rows: pa.Table) -> None:
    """Check some rows as `ingest` will, and take the dimension from them.

    Raises
    ------
    InputError
        When a row is bad, and would not be left out by ``input.on_bad_rows`` or perhaps by a filter.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from spark_dbp.kernels.samples import SHAPE, make_samples
    from spark_dbp.kernels.vectors import is_embedding_type

    rows = rows.combine_chunks()
    if VECTOR in rows.column_names:
        vectors, problems = take_vectors(rows.column(VECTOR).combine_chunks())
        rows = rows.set_column(rows.column_names.index(VECTOR), VECTOR, vectors)
        if SHAPE not in rows.column_names:
            rows = rows.append_column(SHAPE, problems)
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
