"""The commands on tables of others: ``import``. Imports `exchange` and what is below."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING

from spark_dbp.commands.shared import Options
from spark_dbp.errors import ConfigError
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from spark_dbp.exchange.import_embeddings import ImportedTable

_NEXT = "what next\n  prune it    input: {{path: {path}}} in a configuration, then spark-dbp run"


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    import_ = commands.add_parser(
        "import",
        parents=[options.common, options.settings],
        help="write embeddings of another program as a Parquet table",
        description="Write embeddings, keys and metadata that another program wrote as a Parquet table. "
        "Options of the format are set as in a configuration: --set input.options.array=l14_img.",
    )
    formats = "clip_retrieval, datacomp, semdedup, curator or npy (docs/formats.md)"
    import_.add_argument("format", metavar="FORMAT", help=formats)
    import_.add_argument("src", metavar="SRC", nargs="+", help="folders; for npy matrices")
    import_.add_argument("--out", metavar="TABLE", required=True, help="a new directory")
    import_.add_argument(
        "--key", metavar="COLUMN", help="column that becomes the key (default: the format's)"
    )
    import_.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    import_.set_defaults(command=_import)


def _import(parsed: argparse.Namespace) -> int:
    from spark_dbp.config_input import make_format_options
    from spark_dbp.engine.session import get_session
    from spark_dbp.exchange.import_embeddings import import_embeddings
    from spark_dbp.settings import apply_settings

    given = apply_settings({}, parsed.settings)
    of_input = given.get("input", {})
    if not set(given) <= {"input", "spark"} or not set(of_input) <= {"options"}:
        raise ConfigError(
            "import takes no settings but input.options.* and spark.*", mend="leave the others out of --set"
        )
    options = of_input.get("options", {})
    make_format_options(parsed.format, options, parsed.src)  # before Spark starts
    table = import_embeddings(
        get_session(given.get("spark")), parsed.format, parsed.src, parsed.out, key=parsed.key, **options
    )
    print(redact(json.dumps(table.to_dict(), indent=1) if parsed.json else _describe(table)))
    return 0


def _describe(table: ImportedTable) -> str:
    columns = ", ".join(f"{name} {data_type.upper()}" for name, data_type in table.columns.items())
    return f"{table.path}\nrows  {table.rows:,}\n{columns}\n{_NEXT.format(path=shlex.quote(table.path))}"
