"""What a local Java says: what a user can act upon to the terminal, all to a log file. Imports nothing.

Only the command line asks for this. It starts Java with a pipe in the place of standard output and error, and
passes on what comes through it, line by line, to standard error. So standard output is for results alone.
A program inherits both when it is started, so the pipe stands in the place of Python's too for the seconds in
which Java starts; what Python writes meanwhile is passed on as well. Where spark-submit or a platform started
Java, its output is theirs to place.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

log = logging.getLogger("spark_dbp")

# Begins a line of Spark's log that is for the log file alone. In such a line, line ends are written as \n
# (log4j2.properties).
_MARK = "\x1f"
# What Java and Spark say whenever they start, to a user who can do nothing about it.
_NOISE = re.compile(
    r"WARNING: Using incubator modules"
    r"|WARNING: (?:A terminally deprecated|A restricted method|Restricted methods|Use --enable-native-access)"
    r"|WARNING: (?:sun\.misc\.Unsafe|Please consider reporting|java\.lang\.(?:System|foreign))"
    r"|(?:NOTE: )?Picked up (?:JDK_JAVA_OPTIONS|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS)"
    r"|Setting default log level to|To adjust logging level use|Using Spark's default log4j profile"
    r"|:: loading settings ::"
)
# Seconds to wait, when a session does not start, for the rest of what Java said. There is no end to wait for
# where it lives on.
_PATIENCE = 0.5


@dataclass(frozen=True)
class _Wishes:
    shows_all: bool = False
    keeps_all: bool = False


_wishes: _Wishes | None = None


@contextmanager
def tidy_java_output(*, shows_all: bool = False, keeps_all: bool = False) -> Iterator[None]:
    """Let what a local Java says pass through this process, if one is started inside.

    Parameters
    ----------
    shows_all : bool
        Whether noise is shown too, and Spark's messages of failed tasks.
    keeps_all : bool
        Whether Spark also logs what is for a log file alone: the logger ``spark_dbp`` gets it, with all else
        that Java says, as messages of level DEBUG.
    """
    global _wishes
    before, _wishes = _wishes, _Wishes(shows_all, keeps_all)
    try:
        yield
    finally:
        _wishes = before


def choose_log_options() -> list[str]:
    """Options of Java by which `log4j2.properties` knows what to log, and where to."""
    shows_all = _wishes.shows_all if _wishes else log.isEnabledFor(logging.DEBUG)
    keeps_all = bool(_wishes and _wishes.keeps_all)
    options = []
    if shows_all:
        options += ["-Dspark_dbp.failed_tasks=error", "-Dspark_dbp.aborted_tasks=NEUTRAL"]
    if keeps_all:
        options += ["-Dspark_dbp.for_file=info", "-Dspark_dbp.root=info", "-Dspark_dbp.tasks=info"]
    elif shows_all:
        options += ["-Dspark_dbp.tasks=error"]
    return options


@contextmanager
def pass_on_java_output() -> Iterator[None]:
    """Put a pipe in the place of what Java inherits while it starts, if the command line asked for it."""
    if _wishes is None:
        yield
        return
    try:
        outs = {number: os.dup(number) for number in (1, 2)}
    except OSError:  # this process has no standard output or error
        yield
        return
    reads, writes = os.pipe()
    pump = threading.Thread(target=_pump, args=(reads, outs[2], _wishes), daemon=True)
    pump.start()
    sys.stdout.flush()
    for number in outs:
        os.dup2(writes, number)
    os.close(writes)
    has_failed = False
    try:
        yield
    except Exception:
        has_failed = True
        raise
    finally:
        for number, out in outs.items():
            os.dup2(out, number)
        os.close(outs[1])
        if has_failed:  # what Java said of it comes before our own error
            pump.join(_PATIENCE)


def _pump(reads: int, terminal: int, wishes: _Wishes) -> None:
    """Pass on line by line, until Java has ended."""
    with open(reads, "rb") as lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r\n")
            shown = not text.startswith(_MARK) and (wishes.shows_all or not _NOISE.match(text))
            if shown:
                with suppress(OSError):
                    os.write(terminal, line)
            if wishes.keeps_all:
                with suppress(Exception):  # a log that cannot be written stops no Java
                    _keep(text)
    os.close(terminal)


def _keep(text: str) -> None:
    if text.startswith(_MARK):
        text = text[len(_MARK) :].replace("\\r", "").replace("\\n", "\n    ").replace("\\t", "  ")
    if text.strip():
        log.debug("java: %s", text, extra={"for_file": True})
