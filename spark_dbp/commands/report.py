"""The command ``report``. Imports `explore` and `shared`."""

from __future__ import annotations

import argparse
import json
import re
import shlex

from spark_dbp.commands.shared import Options, open_run
from spark_dbp.errors import ConfigError
from spark_dbp.secrets import redact

_SETTING = re.compile(r"(report|spark)\.")


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of the command."""
    report = commands.add_parser(
        "report",
        parents=[options.common, options.settings],
        help="write one HTML page about a finished run",
        description="Write one HTML file about a finished run, at most 2 MB, that needs no network. "
        "Images and texts are looked up in the input: --set report.image=COLUMN report.caption=COLUMN.",
    )
    report.add_argument("run", metavar="RUN", help="directory of a finished run")
    report.add_argument(
        "--out", metavar="FILE", help="where (default: RUN-report.html here); an earlier report is replaced"
    )
    report.add_argument("--json", action="store_true", help="print what was written as one JSON document")
    report.set_defaults(command=_report, interrupted="the same command begins anew")


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
        print(redact(json.dumps(written.to_dict(), indent=1)))
        return 0
    print(redact(f"{written.path}\n{written.describe()}"))
    print(
        redact(
            f"what next\n  look at it    open {shlex.quote(written.path)} in a browser, or send it to a "
            "colleague"
        )
    )
    return 0
