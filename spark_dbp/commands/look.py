"""The commands that look at what is there: verify, clean, doctor. Imports `explore`."""

from __future__ import annotations

import argparse

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import find_session, keep_spark_settings, open_run


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    verify = add_command(
        commands, options, "verify", _verify, "check every table of a finished run against the others",
        description="Check every table of a finished run against run.json and the others. What was "
        "computed is computed again, by the other engine where it reaches the run.",
        examples=["verify RUN", "verify s3://lake/pruned/run-1 --json"],
        json="print what was checked as one JSON document",
    )  # fmt: skip
    verify.add_argument("run", metavar="RUN", help="directory of a finished run")

    clean = add_command(
        commands, options, "clean", _clean, "delete what failed or replaced attempts left in a run directory",
        examples=["clean RUN --dry-run  # only list it", "clean RUN"],
        json="print what was deleted as one JSON document",
    )  # fmt: skip
    clean.add_argument("run", metavar="RUN", help="run directory, finished or not")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")

    doctor = add_command(
        commands, options, "doctor", _doctor, "find out whether a job could run on this platform",
        description="Find out whether a job could run on this platform: Java, Spark, Python and packages "
        "of driver and workers, the storage, the catalog. Says what would mend each problem.",
        examples=["doctor", "doctor conf.yaml", "doctor --output s3://lake/pruned/ --json"],
        json="print the findings as one JSON document",
    )  # fmt: skip
    doctor.add_argument("conf", metavar="CONF", nargs="?", help="configuration of that job")
    doctor.add_argument("--output", metavar="PATH", help="where it would write (default: output.path)")


def _verify(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session
    from spark_dbp.explore.verify import verify
    from spark_dbp.settings import apply_settings

    settings = keep_spark_settings("verify", parsed.settings)
    run, spark = open_run(parsed.run, settings)
    checks = verify(run, spark or get_session(apply_settings({}, settings).get("spark")))
    if parsed.json:
        print_json({"run": run.path, "ok": True, "checks": checks})
    else:
        print_text("\n".join(f"ok  {check}" for check in checks))
    return 0


def _clean(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.storage import reach_storage
    from spark_dbp.lake.cleaning import clean

    spark = find_session(parsed.run, keep_spark_settings("clean", parsed.settings))
    if spark is not None:
        reach_storage(spark, parsed.run, "run", writes=True)
    found = clean(parsed.run, dry_run=parsed.dry_run)
    n_bytes = sum(size for _, size in found)
    if parsed.json:
        rows = [{"path": path, "bytes": size} for path, size in found]
        print_json({"run": parsed.run, "deleted": not parsed.dry_run, "bytes": n_bytes, "found": rows})
        return 0
    lines = [f"{size:>16,}  {path}" for path, size in found]
    done = "would be deleted" if parsed.dry_run else "deleted"
    print_text("\n".join([*lines, f"{n_bytes:>16,}  bytes {done}" if found else "nothing to delete"]))
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
    if parsed.json:
        print_json(to_document(findings))
    else:
        print_text(format_findings(findings))
    return 0 if can_run(findings) else 3
