"""The command line ``spark-dbp``: parses, calls one of `commands`, says what went wrong. Imports `commands`.

The rest is imported when a command needs it.

Exit codes: 0 done, 2 usage or configuration, 3 input data refused or a run found damaged, 4 the run is
locked or in conflict, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from spark_dbp._version import __version__
from spark_dbp.commands import choose, explain, jobs, look, plan, report, shards, tables
from spark_dbp.commands.shared import make_options
from spark_dbp.errors import SparkDbpError
from spark_dbp.secrets import redact


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
        default = "the same command goes on after the last finished step"
        print(f"spark-dbp: interrupted; {getattr(parsed, 'interrupted', default)}", file=sys.stderr)
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
    options = make_options()
    parser = argparse.ArgumentParser(
        prog="spark-dbp",
        description="Prune a dataset by the complexity of its concept clusters (DBP, arXiv 2401.04578).",
        parents=[options.common],
    )
    parser.add_argument("--version", action="version", version=f"spark-dbp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (jobs, plan, choose, look, explain, report, tables, shards):
        module.add_commands(commands, options)
    return parser


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
