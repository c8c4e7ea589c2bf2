"""How parsers of commands are made: help with examples, the nearest name of a wrong one. Imports `_version`.

The rest is argparse, because the parsers of all commands are made before one of them is chosen.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from spark_dbp._version import __version__

# What a command says when it is cut off and keeps nothing.
ANEW = "the same command begins anew"
PROG = "spark-dbp"
_ABOUT = """\
Prune a dataset by the complexity of its concept clusters (DBP, arXiv 2401.04578).
`spark-dbp COMMAND --help` has the options of a command, and examples."""
_EXIT_CODES = """\
exit codes:
  0  done
  1  anything else: a bug, a full disk, a platform that fails
  2  the command line or the configuration is wrong
  3  the input data is refused, a run is damaged, or verify or doctor found a problem
  4  another process uses the run, or the output is something else's"""
_DEFAULTS = {"debug": False, "quiet": False, "log_file": None}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps paragraphs, and leaves those alone that have indented lines: lists and examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            part if re.search(r"^  ", part, re.MULTILINE) else textwrap.fill(" ".join(part.split()), width)
            for part in text.split("\n\n")
        ]
        return textwrap.indent("\n\n".join(paragraphs), indent)


class CommandParser(argparse.ArgumentParser):
    """A parser that proposes the nearest name for a wrong command or option."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"formatter_class": Formatter, **more})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; those that are not known are refused with a proposal."""
        found, rest = self.parse_known_args(args, namespace)
        chosen = list_commands(self).get(getattr(found, "command_name", ""), self)
        rest = _take_late_places(chosen, found, rest)
        if rest:
            chosen.error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments, and the nearest name that is known."""
        self.print_usage(sys.stderr)
        hint = self._propose(message)
        self.exit(2, f"{self.prog}: error: {message}{hint}\n  to mend it: see {self.prog} --help\n")

    def _propose(self, message: str) -> str:
        wrong, known = re.search(r"invalid choice: '([^']*)'", message), list(list_commands(self))
        if wrong is None:
            wrong = re.search(r"unrecognized arguments: (?:.* )?(--?[\w-]+)", message)
            known = [name for action in self._actions for name in action.option_strings]
        elif not known:
            known = [str(choice) for action in self._actions for choice in action.choices or ()]
        import difflib  # costs what help should not

        near = difflib.get_close_matches(wrong[1], known, 1) if wrong else []
        return f"; did you mean {near[0]}?" if near else ""


def _take_late_places(
    parser: argparse.ArgumentParser, found: argparse.Namespace, rest: list[str]
) -> list[str]:
    """Give a command that takes any number of places those that follow an option. Returns what is left.

    Python before 3.13 has settled their number by then: ``explain RUN --json KEY`` had no keys.
    """
    many = next((one for one in parser._actions if not one.option_strings and one.nargs == "*"), None)
    if many is None:
        return rest
    at = rest.index("--") if "--" in rest else len(rest)
    late = [word for word in rest[:at] if not word.startswith("-")] + rest[at + 1 :]
    setattr(found, many.dest, [*getattr(found, many.dest), *late])
    return [word for word in rest[:at] if word.startswith("-")]


@dataclass(frozen=True)
class Options:
    """Options that several commands take, as parents of their parsers.

    Attributes
    ----------
    common : argparse.ArgumentParser
        ``--quiet``, ``--log-file``, ``--debug``.
    settings : argparse.ArgumentParser
        ``--set``.
    """

    common: argparse.ArgumentParser
    settings: argparse.ArgumentParser


def make_options() -> Options:
    """The shared options."""
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("options of all commands")
    # Before and after the command: where one is absent it must not undo what the other place says.
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show nothing but errors and the result: no progress, no warnings",
    )
    group.add_argument(
        "--log-file",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="append all messages to a file, with dates, and what a local Spark logs",
    )
    group.add_argument(
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
    return Options(common, settings)


def make_main_parser(options: Options) -> tuple[CommandParser, argparse._SubParsersAction]:
    """The parser of the command line, and the place where commands add theirs."""
    parser = CommandParser(prog=PROG, description=_ABOUT, epilog=_EXIT_CODES, parents=[options.common])
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, dest="command_name", parser_class=CommandParser
    )
    return parser, commands


def add_command(
    commands: argparse._SubParsersAction,
    options: Options,
    name: str,
    command: Callable[[argparse.Namespace], int],
    about: str,
    *,
    examples: Sequence[str],
    description: str | None = None,
    takes_settings: bool = True,
    json: str | None = None,
    interrupted: str | None = ANEW,
) -> argparse.ArgumentParser:
    """Add a command in the way that all have.

    Parameters
    ----------
    commands : argparse action
        From `make_main_parser`.
    options : Options
    name : str
    command : callable
        Takes what was parsed, and returns the exit code.
    about : str
        One line, for the list of commands.
    examples : sequence of str
        Arguments, without ``spark-dbp``. A comment may follow after ``#``.
    description : str, optional
        By default `about` as a sentence.
    takes_settings : bool
        Whether there is ``--set``.
    json : str, optional
        Help of ``--json``; without it there is no such option.
    interrupted : str, optional
        What to say when the command is cut off; None for one that goes on where it was.

    Returns
    -------
    argparse.ArgumentParser
        To add the arguments of the command to.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        parents=[options.common, options.settings] if takes_settings else [options.common],
        help=about,
        description=description or f"{about[0].upper()}{about[1:]}.",
        epilog=_list_examples(examples),
    )
    if json is not None:
        parser.add_argument("--json", action="store_true", help=json)
    parser.set_defaults(command=command, **({} if interrupted is None else {"interrupted": interrupted}))
    return parser


def _list_examples(examples: Sequence[str]) -> str:
    """The examples below each other, and their comments too.

    Examples
    --------
    >>> print(_list_examples(["verify RUN  # check it", "clean RUN --dry-run"]))
    examples:
      spark-dbp verify RUN  # check it
      spark-dbp clean RUN --dry-run
    """
    return "\n".join(["examples:", *(f"  {PROG} {line}" for line in examples)])


def list_commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands by name; of a command's parser none.

    Parameters
    ----------
    parser : argparse.ArgumentParser

    Returns
    -------
    dict of str to argparse.ArgumentParser
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; exits with code 2 where it is wrong."""
    return parser.parse_args(arguments, argparse.Namespace(**_DEFAULTS))
