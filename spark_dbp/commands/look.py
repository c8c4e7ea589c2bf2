"""The commands that look at what is there: verify, clean, doctor. Imports `explore`."""

from __future__ import annotations

import argparse
import json

from spark_dbp.commands.shared import Options, find_session, keep_spark_settings, open_run
from spark_dbp.secrets import redact


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    verify = commands.add_parser(
        "verify",
        parents=[options.common, options.settings],
        help="check every table of a finished run against the others",
    )
    verify.add_argument("run", metavar="RUN", help="directory of a finished run")
    verify.set_defaults(command=_verify, interrupted="the same command begins anew")

    clean = commands.add_parser(
        "clean",
        parents=[options.common, options.settings],
        help="delete what failed or replaced attempts left in a run directory",
    )
    clean.add_argument("run", metavar="RUN", help="run directory, finished or not")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    clean.set_defaults(command=_clean, interrupted="the same command begins anew")

    doctor = commands.add_parser(
        "doctor",
        parents=[options.common, options.settings],
        help="find out whether a job could run on this platform",
    )
    doctor.add_argument("conf", metavar="CONF", nargs="?", help="configuration of that job")
    doctor.add_argument("--output", metavar="PATH", help="where it would write (default: output.path)")
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    doctor.set_defaults(command=_doctor, interrupted="the same command begins anew")


def _verify(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session
    from spark_dbp.explore.verify import verify
    from spark_dbp.settings import apply_settings

    settings = keep_spark_settings("verify", parsed.settings)
    run, spark = open_run(parsed.run, settings)
    for check in verify(run, spark or get_session(apply_settings({}, settings).get("spark"))):
        print(f"ok  {check}")
    return 0


def _clean(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.storage import reach_storage
    from spark_dbp.lake.cleaning import clean

    spark = find_session(parsed.run, keep_spark_settings("clean", parsed.settings))
    if spark is not None:
        reach_storage(spark, parsed.run, "run", writes=True)
    found = clean(parsed.run, dry_run=parsed.dry_run)
    for path, size in found:
        print(f"{size:>16,}  {path}")
    done = "would be deleted" if parsed.dry_run else "deleted"
    print(f"{sum(size for _, size in found):>16,}  bytes {done}" if found else "nothing to delete")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.engine.session import get_session
    from spark_dbp.explore.doctor import Wishes, can_run, examine, format_findings, to_document
    from spark_dbp.settings import apply_settings

    if parsed.conf is None:
        given = apply_settings({}, keep_spark_settings("doctor without CONF", parsed.settings))
        spark, wishes = given.get("spark"), Wishes(output=parsed.output)
    else:
        config = RunConfig.from_yaml(parsed.conf, parsed.settings)
        spark = config.spark
        wishes = Wishes(
            output=parsed.output or config.output.path,
            engine=config.engine,
            paths=config.input.paths,
            table=config.input.table,
            format=config.input.format,
            options=config.input.options.to_dict(),
            published=config.output.table,
            table_format=config.output.table_format,
            deduplicates=bool(config.dedup.minhash or config.dedup.semantic),
            shards=config.shards,
            embed=config.embed,
        )
    findings = examine(lambda: get_session(spark), wishes)
    text = json.dumps(to_document(findings), indent=1) if parsed.json else format_findings(findings)
    print(redact(text))
    return 0 if can_run(findings) else 3
