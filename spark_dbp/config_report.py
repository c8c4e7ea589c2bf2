"""The section ``report``. Imports `config_base`; no Spark."""

from __future__ import annotations

from typing import Literal

from spark_dbp.config_base import ColumnOrSql, Section


class ReportConfig(Section):
    """Columns of the input that the report shows beside keys. No step depends on them.

    Where none is named, it shows what ``embed`` reads; ``false``: nothing.
    """

    image: ColumnOrSql | Literal[False] | None = None
    caption: ColumnOrSql | Literal[False] | None = None
