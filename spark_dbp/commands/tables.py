"""The commands between a run and what others read and write: import, export. Imports `exchange`."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import keep_spark_settings, open_run
from spark_dbp.errors import ConfigError

if TYPE_CHECKING:
    from spark_dbp.exchange.import_embeddings import ImportedTable

_WRITTEN = (
    "txt, datacomp, npy, pygtrie, semdedup, curator, clip_retrieval, shard_counts or verdicts "
    "(docs/formats.md)"
)
_NEXT = "what next\n  prune it    input: {{path: {path}}} in a configuration, then spark-dbp run"


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    import_ = add_command(
        commands, options, "import", _import, "write embeddings of another program as a Parquet table",
        description="Write embeddings, keys and metadata that another program wrote as a Parquet table. "
        "Options of the format are set as in a configuration: --set input.options.array=l14_img.",
        examples=[
            "import clip_retrieval embeddings/ --out TABLE",
            "import datacomp metadata/ --out TABLE --set input.options.array=l14_img",
        ],
        json="print what was written as one JSON document",
    )  # fmt: skip
    formats = "clip_retrieval, datacomp, semdedup, curator or npy (docs/formats.md)"
    import_.add_argument("format", metavar="FORMAT", help=formats)
    import_.add_argument("src", metavar="SRC", nargs="+", help="folders; for npy matrices")
    import_.add_argument("--out", metavar="TABLE", required=True, help="a new directory")
    import_.add_argument(
        "--key", metavar="COLUMN", help="column that becomes the key (default: the format's)"
    )

    export = add_command(
        commands, options, "export", _export,
        "write what a run kept, or left out, in a form that others read",
        examples=[
            "export RUN --to txt --out kept.txt",
            "export RUN --to datacomp --out kept.npy  # for DataComp's resharder",
            "export RUN --to txt --rows dropped --reason semantic --out duplicates.txt",
        ],
        json="print what was written as one JSON document",
        interrupted="nothing was written; the same command begins anew",
    )  # fmt: skip
    export.add_argument("run", metavar="RUN", help="directory of a finished run")
    export.add_argument("--to", metavar="FORMAT", required=True, help=_WRITTEN)
    export.add_argument("--out", metavar="PATH", help="file or folder to write")
    export.add_argument("--rows", metavar="kept|dropped", help="which rows (default: kept; curator: dropped)")
    export.add_argument(
        "--reason",
        metavar="R",
        help="with dropped: exact, minhash, semantic, score_filter, prune, bad_rows, or a problem's name",
    )
    export.add_argument("--key", metavar="EXPR", help="SQL for what is written of a row (default: its key)")
    export.add_argument("--row", metavar="EXPR", help="semdedup: SQL for the row in the embeddings; or none")
    export.add_argument("--shard", metavar="EXPR", help="shard_counts: SQL for the name of a row's shard")
    export.add_argument(
        "--research-keys", action="store_true", help="pygtrie: cut keys as the research code does"
    )
    export.add_argument(
        "--publish", action="store_true", help="verdicts: as one more table of the run's output.table"
    )


def _import(parsed: argparse.Namespace) -> int:
    from spark_dbp.config_input import make_format_options
    from spark_dbp.engine.session import get_session
    from spark_dbp.exchange.import_embeddings import import_embeddings
    from spark_dbp.exchange.out_place import check_place
    from spark_dbp.settings import apply_settings

    given = apply_settings({}, parsed.settings)
    of_input = given.get("input", {})
    if not set(given) <= {"input", "spark"} or not set(of_input) <= {"options"}:
        raise ConfigError(
            "import takes no settings but input.options.* and spark.*", mend="leave the others out of --set"
        )
    options = of_input.get("options", {})
    make_format_options(parsed.format, options, parsed.src)  # before Spark starts
    check_place(parsed.out)
    table = import_embeddings(
        get_session(given.get("spark")), parsed.format, parsed.src, parsed.out, key=parsed.key, **options
    )
    if parsed.json:
        print_json(table.to_dict())
    else:
        print_text(_describe(table))
    return 0


def _describe(table: ImportedTable) -> str:
    columns = ", ".join(f"{name} {data_type.upper()}" for name, data_type in table.columns.items())
    return f"{table.path}\nrows  {table.rows:,}\n{columns}\n{_NEXT.format(path=shlex.quote(table.path))}"


def _export(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session
    from spark_dbp.exchange.export import check_options, export
    from spark_dbp.exchange.whole_output import check_output
    from spark_dbp.lake import files
    from spark_dbp.settings import apply_settings

    settings = keep_spark_settings("export", parsed.settings)
    options = {name: getattr(parsed, name) for name in ("key", "row", "shard", "research_keys")}
    has_out, publish = parsed.out is not None, parsed.publish
    check_options(parsed.to, parsed.rows, parsed.reason, has_out=has_out, publish=publish, **options)
    run, spark = open_run(parsed.run, settings)
    if has_out and files.is_local(parsed.out):  # before Spark starts
        check_output(parsed.out, run.path)
    report = export(
        run,
        parsed.to,
        parsed.out,
        spark or get_session(apply_settings({}, settings).get("spark")),
        rows=parsed.rows,
        reason=parsed.reason,
        publish=publish,
        **options,
    )
    if parsed.json:
        print_json(report.to_document())
    else:
        print_text(str(report))
    return 0
