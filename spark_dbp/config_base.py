"""What the sections of the configuration are made of. Imports pydantic and what is beside it; no Spark."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from spark_dbp.lake import paths
from spark_dbp.secrets import redact


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("is a truth value, a number is needed")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Real = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
UserPath = Annotated[str, AfterValidator(paths.expand_home)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SqlColumn(Section):
    """A column that is computed: ``{sql: EXPRESSION}`` where the name of a column may stand."""

    sql: str = Field(min_length=1)

    def __str__(self) -> str:
        """The expression; the column is found in the input under this name."""
        return self.sql


# A column of the input: its name, a field of a struct (``features.clip``), or SQL. `str` gives the name under
# which `io.sources` makes the column available.
ColumnOrSql = str | SqlColumn


def name_column(column: ColumnOrSql | None) -> str | None:
    """The name under which a column of the configuration is found in the input; None for none."""
    return None if column is None else str(column)


def check_path(key: str, path: str) -> None:
    """Refuse a path that cannot be right, or that holds credentials.

    Raises
    ------
    ValueError
    """
    if "\0" in path:
        raise ValueError(f"{key} {path!r} holds a NUL character")
    if redact(path) != path:
        raise ValueError(
            f"{key} {path!r} holds credentials: paths are written down, and Spark takes none from there; "
            "give them in the spark section (spark.hadoop.fs.s3a.access.key ...) or in the environment"
        )
    better = paths.find_better_form(path)
    if better is not None:
        raise ValueError(f"{key} {path!r}: write {better}")
