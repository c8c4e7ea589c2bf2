"""The command ``report``. Imports `explore` and `shared`."""

from __future__ import annotations

import argparse
import re
import shlex

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import open_run
from spark_dbp.errors import ConfigError

_SETTING = re.compile(r"(report|spark)\.")


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of the command."""
    report = add_command(
        commands, options, "report", _report, "write one HTML page about a finished run",
        description="Write one HTML file about a finished run, at most 2 MB, that needs no network. "
        "Images and texts are looked up in the input: --set report.image=COLUMN report.caption=COLUMN.",
        examples=["report RUN", "report RUN --set report.caption=caption --out page.html"],
        json="print what was written as one JSON document",
    )  # fmt: skip
    report.add_argument("run", metavar="RUN", help="directory of a finished run")
    report.add_argument(
        "--out", metavar="FILE", help="where (default: RUN-report.html here); an earlier report is replaced"
    )


def _report(parsed: argparse.Namespace) -> int:
    for item in parsed.settings:
        if not _SETTING.match(item):
            raise ConfigError(
                f"report takes no settings but report.* and spark.*: {item!r}",
                mend="leave the others out of --set",
            )
    run, spark = open_run(parsed.run, [item for item in parsed.settings if item.startswith("spark.")])
    from spark_dbp.explore.report.write import write_report

    written = write_report(run, parsed.out, parsed.settings, spark)
    if parsed.json:
        print_json(written.to_dict())
        return 0
    look = f"open {shlex.quote(written.path)} in a browser, or send it to a colleague"
    print_text(f"{written.path}\n{written.describe()}\nwhat next\n  look at it    {look}")
    return 0
