"""The command line ``spark-dbp``: parses, calls, reports. Imports the rest when a command needs it.

Exit codes: 0 done, 2 usage or configuration, 3 input data refused or a run found damaged, 4 the run is
locked or in conflict, 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING

from spark_dbp._version import __version__
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.config import RunConfig
    from spark_dbp.runs import Run

# Paths as Python and as a shell read them.
_NEXT = """what next
  join the keep list     spark.read.parquet({keep_list}).join(metadata, "key")
  filter while loading   "some-key" in spark_dbp.KeepTrie.open({run})
  another ratio          spark-dbp select {run_argument} --set prune.keep_ratio=0.2 --out {out_argument}"""

# Of each demo: what it does, where unless told otherwise, and what most samples of a cluster have in common.
_DEMOS = {
    "digits": (
        "Pruning scikit-learn's handwritten digits: real images, their pixels as embeddings.",
        "demo-run",
        "the digit that most of its images show",
    ),
    "images": (
        "Pruning handwritten digits: PNGs in the shards of a WebDataset, embedded by EfficientNet-Lite0.",
        "demo-images-run",
        "the digit that most of its images show",
    ),
    "texts": (
        "Pruning first lines of docstrings of installed packages, embedded by all-MiniLM-L6-v2.",
        "demo-texts-run",
        "the package that most of its texts are of",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default the process's.

    Returns
    -------
    int
        The exit code.
    """
    parsed = _parser().parse_args(arguments, argparse.Namespace(debug=False))
    try:
        with _progress_on_stderr(logging.DEBUG if parsed.debug else logging.INFO), _sigterm_as_interrupt():
            return int(parsed.command(parsed))
    except SparkDbpError as error:
        if parsed.debug:
            _print_trace()
        print(f"spark-dbp: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "spark-dbp: interrupted; the same command goes on after the last finished step", file=sys.stderr
        )
        return 1
    except OSError as error:  # a full disk, a directory that may not be written
        if parsed.debug:
            _print_trace()
        place = f" {error.filename}" if error.filename else ""
        print(
            redact(f"spark-dbp: cannot read or write{place}: {error.strerror or error}\n")
            + "  to mend it: see that the place exists, may be written and has room; then run again",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        if parsed.debug:
            _print_trace()
        from spark_dbp.engine.spark_errors import read_first_line

        print(
            f"spark-dbp: {type(error).__name__}: {redact(read_first_line(error))}\n"
            "  to mend it: run with --debug for the whole trace; if the cause is not yours, please report it",
            file=sys.stderr,
        )
        return 1


def run_job() -> None:
    """Run the command line as Databricks calls an entry point: it takes any return for success.

    Raises
    ------
    SystemExit
        With the exit code, when it is not 0.
    """
    code = main()
    if code:
        raise SystemExit(code)


def _print_trace() -> None:
    print(redact(traceback.format_exc()), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    # Before and after the command: where it is absent it must not undo what the other place says.
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole trace of an error"
    )
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set",
        dest="settings",
        metavar="a.b=value",
        nargs="+",
        action="extend",
        default=[],
        help="override configuration keys (values in YAML)",
    )
    parser = argparse.ArgumentParser(
        prog="spark-dbp",
        description="Prune a dataset by the complexity of its concept clusters (DBP, arXiv 2401.04578).",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"spark-dbp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run", parents=[common, settings], help="run the whole job of a configuration file"
    )
    run.add_argument("conf", metavar="CONF", help="YAML file; conf/example.yaml describes every key")
    run.add_argument("--fresh", action="store_true", help="reuse nothing of an earlier run in output.path")
    run.set_defaults(command=_run)

    demo = commands.add_parser(
        "demo", parents=[common], help="cluster and prune 1,797 handwritten digits on this machine"
    )
    which = demo.add_mutually_exclusive_group()
    for kind, what in (("images", "pictures in shards"), ("texts", "docstrings of installed packages")):
        which.add_argument(
            f"--{kind}",
            dest="demo",
            action="store_const",
            const=kind,
            help=f"embed {what} with a pretrained model first (needs torch)",
        )
    defaults = ", ".join(directory for _, directory, _ in _DEMOS.values())
    demo.add_argument("dir", metavar="DIR", nargs="?", help=f"where (default: {defaults})")
    demo.set_defaults(command=_demo, demo="digits")

    select = commands.add_parser(
        "select", parents=[common, settings], help="prune a finished run again without clustering"
    )
    select.add_argument("run", metavar="RUN", help="directory of a finished run")
    select.add_argument("--out", metavar="DIR", required=True, help="directory of the new run")
    select.set_defaults(command=_select)

    sweep = commands.add_parser(
        "sweep",
        parents=[common, settings],
        help="show how many samples each eps of semantic deduplication removes",
    )
    sweep.add_argument("run", metavar="RUN", help="directory of a finished run with dedup.semantic")
    sweep.set_defaults(command=_sweep)

    verify = commands.add_parser(
        "verify", parents=[common, settings], help="check every table of a finished run against the others"
    )
    verify.add_argument("run", metavar="RUN", help="directory of a finished run")
    verify.set_defaults(command=_verify)

    clean = commands.add_parser(
        "clean",
        parents=[common, settings],
        help="delete what failed or replaced attempts left in a run directory",
    )
    clean.add_argument("run", metavar="RUN", help="run directory, finished or not")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    clean.set_defaults(command=_clean)

    doctor = commands.add_parser(
        "doctor", parents=[common, settings], help="find out whether a job could run on this platform"
    )
    doctor.add_argument("conf", metavar="CONF", nargs="?", help="configuration of that job")
    doctor.add_argument("--output", metavar="PATH", help="where it would write (default: output.path)")
    doctor.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(parsed: argparse.Namespace) -> int:
    from spark_dbp.config import RunConfig
    from spark_dbp.engine.session import get_session

    if "=" in parsed.conf and not parsed.conf.endswith((".yaml", ".yml")):
        raise ConfigError(f"{parsed.conf!r} is no configuration file", mend="put CONF before --set")
    config = RunConfig.from_yaml(parsed.conf, parsed.settings)
    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        imported = beside.submit(import_module, "spark_dbp.runner")
        session = get_session(config.spark, records_classes=True)
    _report(imported.result().run(config, session, fresh=parsed.fresh))
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session

    about, default, mostly = _DEMOS[parsed.demo]
    directory = default if parsed.dir is None else parsed.dir
    if parsed.demo != "digits":
        from spark_dbp.encoders.packaged import check_installed

        check_installed(parsed.demo)
    print(about, file=sys.stderr)

    def prepare() -> tuple[RunConfig, dict[str, str]]:
        import_module("spark_dbp.runner")
        from spark_dbp.demo import configure

        return configure(parsed.demo, directory)

    with ThreadPoolExecutor(1) as beside:  # Spark starts meanwhile, in the thread that uses it
        prepared = beside.submit(prepare)
        session = get_session(records_classes=True)
    from spark_dbp.explore.clusters import describe_extreme_clusters, format_clusters
    from spark_dbp.runner import run

    config, labels = prepared.result()
    done = run(config, session)
    _report(done)
    print(f"narrowest and widest clusters (mostly: {mostly})")
    print(format_clusters(describe_extreme_clusters(done, labels=labels)))
    return 0


def _select(parsed: argparse.Namespace) -> int:
    from spark_dbp.runner import prune_again

    settings = [item for item in parsed.settings if item.startswith("spark.")]
    source, spark = _open_run(parsed.run, settings)
    _report(prune_again(source, parsed.out, parsed.settings, spark))
    return 0


def _sweep(parsed: argparse.Namespace) -> int:
    run, _ = _open_run(parsed.run, _only_spark("sweep", parsed.settings))
    print(f"{'eps':>8}{'similarity above':>18}{'removed':>14}{'share':>9}")
    for row in run.semantic_sweep():
        used = "  applied" if row["applied"] else ""
        above = _write_least_similarity(row["eps"])
        print(f"{row['eps']:>8g}{above:>18}{row['removed']:>14,}{row['share']:>9.1%}{used}")
    return 0


def _write_least_similarity(eps: float) -> str:
    """1 - eps, never rounded to 1, which no similarity is above.

    Examples
    --------
    >>> _write_least_similarity(0.05), _write_least_similarity(1e-9), _write_least_similarity(1e-20)
    ('0.95', '0.999999999', '1 - 1e-20')
    """
    return f"1 - {eps:g}" if eps < 1e-12 else f"{1 - Decimal(str(eps)):f}"


def _verify(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.session import get_session
    from spark_dbp.explore.verify import verify
    from spark_dbp.settings import apply_settings

    settings = _only_spark("verify", parsed.settings)
    run, spark = _open_run(parsed.run, settings)
    for check in verify(run, spark or get_session(apply_settings({}, settings).get("spark"))):
        print(f"ok  {check}")
    return 0


def _clean(parsed: argparse.Namespace) -> int:
    from spark_dbp.engine.storage import reach_storage
    from spark_dbp.lake.cleaning import clean

    spark = _find_session(parsed.run, _only_spark("clean", parsed.settings))
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
        given = apply_settings({}, _only_spark("doctor without CONF", parsed.settings))
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


def _only_spark(command: str, settings: list[str]) -> list[str]:
    if not all(item.startswith("spark.") for item in settings):
        raise ConfigError(f"{command} takes no settings but spark.*", mend="leave the others out of --set")
    return settings


def _open_run(path: str, settings: list[str]) -> tuple[Run, SparkSession | None]:
    """A finished run, and the session through which its store may be reached; None for a local one."""
    from spark_dbp.runs import open_run

    spark = _find_session(path, settings)
    return open_run(path, spark), spark


def _find_session(path: str, settings: list[str]) -> SparkSession | None:
    """The session, with these settings, for a run directory that is not local."""
    from spark_dbp.engine.session import get_session
    from spark_dbp.lake import files
    from spark_dbp.settings import apply_settings

    return None if files.is_local(path) else get_session(apply_settings({}, settings).get("spark"))


def _report(run: Run) -> None:
    print(redact(f"\n{run.path}\n{run.summary()}"))
    print(redact(_tell_next(run.path, run.table_path("keep_list"))))


def _tell_next(run: str, keep_list: str) -> str:
    from spark_dbp.lake.paths import escape_glob

    return _NEXT.format(
        run=json.dumps(run, ensure_ascii=False),
        keep_list=json.dumps(escape_glob(keep_list), ensure_ascii=False),
        run_argument=shlex.quote(run),
        out_argument=shlex.quote(f"{run}-0.2"),
    )


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Schedulers that take a machine back send SIGTERM first: give the lock back and go, as for Ctrl-C."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress_on_stderr(level: int) -> Iterator[None]:
    from spark_dbp.lake.progress import ProgressLogHandler

    logger = logging.getLogger("spark_dbp")
    handler = ProgressLogHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level)  # a session that is started under DEBUG shows what Spark logs of failed tasks
    try:
        yield
    finally:
        logger.removeHandler(handler)
