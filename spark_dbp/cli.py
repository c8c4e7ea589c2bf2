"""The command line ``spark-dbp``: parses, calls one of `commands`, says what went wrong. Imports `commands`.

The rest is imported when a command needs it.

Exit codes: 0 done, 2 usage or configuration, 3 input data refused or a run found damaged, 4 the run is
locked or in conflict, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from spark_dbp.commands import choose, completion, explain, jobs, look, plan, report, shards, tables
from spark_dbp.commands.logs import keep_logs, note
from spark_dbp.commands.output import print_error
from spark_dbp.commands.parsers import make_main_parser, make_options, parse
from spark_dbp.errors import ConfigError, SparkDbpError
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
    _open_closed_streams()
    if arguments is not None:
        return _run(list(arguments))
    from spark_dbp.engine.patience import is_any_waiting

    code = _run(sys.argv[1:])
    if is_any_waiting():  # pyarrow ends with its last request, which a silent store holds up for minutes
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(given: list[str]) -> int:
    parsed = parse(make_parser(), given)
    try:
        with keep_logs(given, debug=parsed.debug, quiet=parsed.quiet, log_file=parsed.log_file):
            code = _carry_out(parsed)
            note(f"exit code {code}")
            return code
    except ConfigError as error:  # there is no log yet
        print_error(f"spark-dbp: {error}")
        return error.exit_code


def _open_closed_streams() -> None:
    """Where this program was started without standard output or error (``2>&-``), write to nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _carry_out(parsed: argparse.Namespace) -> int:
    """Call the command; say what goes wrong, and return the exit code for it."""
    try:
        with _sigterm_as_interrupt():
            code = int(parsed.command(parsed))
            sys.stdout.flush()
            return code
    except SparkDbpError as error:
        return _tell(parsed, f"{error}", error.exit_code)
    except KeyboardInterrupt:
        default = "the same command goes on after the last finished step"
        return _tell(parsed, f"interrupted; {getattr(parsed, 'interrupted', default)}", 1, traced=False)
    except BrokenPipeError:  # who reads the result has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a directory that may not be written
        place = f" {error.filename}" if error.filename else ""
        return _tell(
            parsed,
            f"cannot read or write{place}: {error.strerror or error}\n"
            "  to mend it: see that the place exists, may be written and has room; then run again",
            1,
        )
    except Exception as error:
        from spark_dbp.engine.spark_errors import read_first_line

        return _tell(
            parsed,
            f"{type(error).__name__}: {read_first_line(error)}\n"
            "  to mend it: run with --debug for the whole trace; if the cause is not yours, please report it",
            1,
        )


def _tell(parsed: argparse.Namespace, text: str, code: int, *, traced: bool = True) -> int:
    """Say what went wrong on standard error, and in the log file with the trace."""
    if traced:
        if parsed.debug:
            print(redact(traceback.format_exc()), file=sys.stderr)
        note(traceback.format_exc().rstrip())
    print_error(f"spark-dbp: {text}")
    note(f"spark-dbp: {text}")
    return code


def run_job() -> None:
    """Run the command line as Databricks calls an entry point: it takes any return for success.

    Raises
    ------
    SystemExit
        With the exit code, when it is not 0.
    """
    code = main(sys.argv[1:])  # not as a process of its own, which may end at once
    if code:
        raise SystemExit(code)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line, with those of all commands.

    Returns
    -------
    argparse.ArgumentParser
        A help page, a reference or a completion may be made of it.

    Examples
    --------
    >>> make_parser().parse_args(["verify", "RUN"]).run
    'RUN'
    """
    options = make_options()
    parser, commands = make_main_parser(options)
    for module in (jobs, plan, choose, explain, report, tables, shards, look, completion):
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
