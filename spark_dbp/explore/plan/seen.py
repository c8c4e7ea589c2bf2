"""What a plan has seen of the input, and what it could not. Imports `columns`; pyspark inside functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import find_path

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql.types import StructType


class Unknown:
    """What cannot be known without a session, or without reading all rows. There is one of it, `UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()


class OnlySparkError(Exception):
    """The input can only be looked at through Spark; the message says why."""


@dataclass(frozen=True)
class Count:
    """A number of rows, and how far it can be trusted.

    Attributes
    ----------
    n : int
    kind : {"exact", "at most", "about"}

    Examples
    --------
    >>> str(Count(1200)), str(Count(1200, "at most"))
    ('1,200', '<= 1,200')
    """

    n: int
    kind: str = "exact"

    def __str__(self) -> str:
        return {"exact": "", "at most": "<= ", "about": "~ "}[self.kind] + f"{self.n:,}"

    def at_most(self, n: int | None = None) -> Count:
        """The same, or `n`, as a bound."""
        kind = "about" if self.kind == "about" else "at most"
        return Count(self.n if n is None else n, kind)

    def share(self, count: Callable[[int], int]) -> Count:
        """What `count` makes of it, known as well as it is itself."""
        return Count(count(self.n), self.kind)


@dataclass
class Shape:
    """Names and types of columns: as much of a DataFrame as checks of columns ask.

    Attributes
    ----------
    schema : StructType
    fields : frozenset of str
        Those of the columns that are fields of structs.
    """

    schema: StructType
    fields: frozenset[str] = frozenset()

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def add_fields(self, names: Iterable[str]) -> Shape:
        """With fields of structs as columns, as `engine.forms.compute_columns` makes them."""
        from pyspark.sql import types as T

        fields = list(self.schema.fields)
        added = []
        for name in names:
            if name not in self.columns and find_path(self, name) is not None:  # type: ignore[arg-type]
                fields.append(T.StructField(name, _find_field(self.schema, name), True))
                added.append(name)
        return Shape(T.StructType(fields), self.fields.union(added))


def _find_field(data_type: Any, name: str) -> Any:
    """The type of a field on the way of `columns.find_path`; of structs in an array, an array."""
    from pyspark.sql import types as T

    if isinstance(data_type, T.ArrayType):
        found = _find_field(data_type.elementType, name)
        return None if found is None else T.ArrayType(found)
    for item in getattr(data_type, "fields", ()):
        if item.name == name:
            return item.dataType
        if name.startswith(f"{item.name}."):
            found = _find_field(item.dataType, name[len(item.name) + 1 :])
            if found is not None:
                return found
    return None


@dataclass
class Seen:
    """What was seen of the input.

    Attributes
    ----------
    name : str
        The setting that names the input, and its value.
    rows : Count
    files : int or None
    bytes : int or None
        Of the files.
    snapshot : dict
        As `io.sources.Snapshot`; what is not known is `UNKNOWN`.
    shape : Shape
        Columns whose types are known.
    unknown_columns : set of str
        Columns of which only a session knows the type: SQL, names of folders.
    stored : dict of str to float
        Bytes that a column takes in the files for each row, where footers say so.
    in_memory : float
        Uncompressed bytes of all columns that are needed, for each row; 0 where not known.
    full_columns : set of str
        Columns without null and NaN, as footers say.
    groups : list
        Row groups that workers would share, as `engine.file_scan.share_groups` takes them; empty where Spark
        reads the input.
    dimension : int or None
    sample : pyarrow.Table or None
        Some rows of the key and of carried columns, under the names of ``samples``.
    distance_spread : float or None
        Standard deviation of given distances.
    n_checked : int
        Rows that were looked at as `ingest` will.
    shards : str or None
        Digest of the shards.
    centroids : tuple of int or None
        Number and dimension of the given centroids.
    centroids_snapshot : object
    most_clusters : int or None
        Of given clusters, the largest id that footers name, and one.
    settings : dict of str to str
        Settings of the session that are known.
    by : str
        Who looked: ``this process`` or ``a Spark session``.
    unchecked : list of str
        What was not checked, and why.
    notes : list of str
    """

    name: str
    rows: Count
    files: int | None = None
    bytes: int | None = None
    snapshot: dict[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    unknown_columns: set[str] = field(default_factory=set)
    stored: dict[str, float] = field(default_factory=dict)
    in_memory: float = 0.0
    full_columns: set[str] = field(default_factory=set)
    groups: list[tuple[str, list[tuple[int, int]]]] = field(default_factory=list)
    dimension: int | None = None
    sample: pa.Table | None = None
    distance_spread: float | None = None
    n_checked: int = 0
    shards: str | None = None
    centroids: tuple[int, int] | None = None
    centroids_snapshot: Any = UNKNOWN
    most_clusters: int | None = None
    settings: dict[str, str | None] = field(default_factory=dict)
    by: str = "this process"
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def is_known(self, column: str) -> bool:
        """Whether the type of a column is known, or that there is no such column."""
        return self.shape is not None and column not in self.unknown_columns

    def name_type(self, column: str) -> Any:
        """The type of a column as Spark writes it, or `UNKNOWN`."""
        if self.shape is None or not self.is_known(column) or column not in self.shape.columns:
            return UNKNOWN
        return self.shape.schema[column].dataType.simpleString()

    def read_setting(self, name: str) -> Any:
        """A setting of the session, or `UNKNOWN`."""
        return self.settings.get(name, UNKNOWN)
