"""Scripts that let a shell complete what is typed. Imports `parsers`; `config` in a function.

Written here rather than by a library: shtab has no fish, and argcomplete starts Python at each key press. A
script is made once, of the parsers. It starts nothing, and needs no dependency.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from spark_dbp.commands.parsers import PROG, Options
from spark_dbp.errors import ConfigError

# What the names of values say: a path. Of others nothing is known, unless `_list_words` has them.
_PATHS = {"CONF", "DIR", "FILE", "GLOB", "PATH", "RUN", "RUN2", "SRC", "TABLE"}


@dataclass(frozen=True)
class Value:
    """What may stand for a value: some words, a path, or neither is known."""

    words: tuple[str, ...] = ()
    is_path: bool = False
    # Whether one option takes several of them.
    several: bool = False


@dataclass(frozen=True)
class Known:
    """A command, or with an empty name what stands before it.

    Attributes
    ----------
    name, about : str
    options : dict of str to (str, Value or None)
        By every spelling: what an option is for, and its value if it takes one.
    places : Value
        What stands without an option.
    """

    name: str
    about: str
    options: dict[str, tuple[str, Value | None]]
    places: Value


def read_parsers(commands: argparse._SubParsersAction, options: Options) -> list[Known]:
    """What there is to complete, of the parsers.

    Parameters
    ----------
    commands : argparse action
        Where all commands have added theirs.
    options : Options

    Returns
    -------
    list of Known
        First what stands before a command.
    """
    words, abouts = _list_words(), {choice.dest: choice.help or "" for choice in commands._choices_actions}
    known = [
        Known("", "", {**_read_options("", options.common, words), "--help": ("show help", None)}, Value())
    ]
    for name, parser in commands.choices.items():
        places = [_read_value(name, one, words) for one in parser._actions if not one.option_strings]
        joined = Value(
            tuple(word for place in places for word in place.words), any(place.is_path for place in places)
        )
        known.append(Known(name, abouts.get(name, ""), _read_options(name, parser, words), joined))
    return known


def _read_options(
    command: str, parser: argparse.ArgumentParser, words: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, Value | None]]:
    return {
        name: (action.help or "", None if action.nargs == 0 else _read_value(command, action, words))
        for action in parser._actions
        for name in action.option_strings
    }


def _read_value(command: str, action: argparse.Action, words: dict[str, tuple[str, ...]]) -> Value:
    given = tuple(map(str, action.choices or ())) or words.get(f"{command}.{action.dest}", ())
    given = given or words.get(action.dest, ())
    return Value(given, action.metavar in _PATHS, action.nargs in ("+", "*"))


def _list_words() -> dict[str, tuple[str, ...]]:
    """Words for values, by command and name, or by name."""
    from spark_dbp.config import Complexity, RunConfig
    from spark_dbp.config_input import Format
    from spark_dbp.exchange.export import FORMATS

    return {
        "settings": tuple(f"{path}=" for path in _list_keys(RunConfig)),
        "sweep.complexity": get_args(Complexity),
        "import.format": tuple(name for name in get_args(Format) if name != "parquet"),
        "export.to": FORMATS,
        "export.rows": ("kept", "dropped"),
        "export.reason": ("exact", "minhash", "semantic", "score_filter", "prune", "bad_rows"),
        "index.key": ("webdataset", "json:", "shard/key"),
        "reshard.key": ("webdataset", "json:", "shard/key"),
    }


def _list_keys(model: Any, path: str = "") -> Iterable[str]:
    """Paths of all keys of the configuration, without those below lists and free mappings."""
    from pydantic import BaseModel

    for name, one in model.model_fields.items():
        kinds = [one.annotation, *get_args(one.annotation)]
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        sections = [kind for kind in below if set(kind.model_fields) != {"sql"}]
        if sections:
            yield from _list_keys(sections[0], f"{path}{name}.")
        else:
            yield f"{path}{name}"


def _join(words: Iterable[str]) -> str:
    """Words as one quoted argument; none of ours has a blank.

    Examples
    --------
    >>> _join(["d_intra*d_inter", "uniform"])
    "'d_intra*d_inter uniform'"
    """
    words = list(words)
    if any(word.split() != [word] for word in words):
        raise ConfigError(
            f"a word with blanks cannot be completed: {words}", mend="please report this as a bug"
        )
    return shlex.quote(" ".join(words))


_SCAN = """\
  local command= option= last=0 i
  for ((i = {first}; i < {current}; i++)); do
    if [[ -z $command ]]; then
      case ${{{words}[i]}} in
        --log-file) ((i++)) ;;
        {commands}) command=${{{words}[i]}} ;;
      esac
    fi
  done
  # The option before the word at the cursor, and how many words ago it was.
  for ((i = {current} - 1; i >= {first}; i--)); do
    if [[ ${{{words}[i]}} == -* ]]; then option=${{{words}[i]}}; last=$(({current} - i)); break; fi
  done"""


def write_bash(known: list[Known]) -> str:
    """The script for bash: 3.2 and later."""
    commands = [one.name for one in known if one.name]
    scan = _SCAN.format(first=1, current="COMP_CWORD", words="COMP_WORDS", commands="|".join(commands))
    values, options, places = [], [], []
    for one in known:
        for name, (_, value) in one.options.items():
            if value is not None:
                times = "*" if value.several else "1"
                values.append(f"    {one.name}:{name}:{times}) words={_join(value.words)}; is_value=1 ;;")
        options.append(f"      {one.name or repr('')}) words={_join(one.options)} ;;")
        if one.places.words:
            places.append(f"      {one.name}) words={_join(one.places.words)} ;;")
    return "\n".join([
        f"# Completion of {PROG} for bash. Made by `{PROG} completion bash`; starts nothing.",
        "_spark_dbp() {",
        "  local current=${COMP_WORDS[COMP_CWORD]} words= is_value= word",
        scan,
        "  COMPREPLY=()",
        '  case "$command:$option:$last" in',
        *values,
        "  esac",
        "  if [[ $current == -* ]]; then",
        '    case "$command" in',
        *options,
        "    esac",
        "  elif [[ -z $is_value && -z $command ]]; then",
        f"    words={_join(commands)}",
        "  elif [[ -z $is_value ]]; then",
        '    case "$command" in',
        *places,
        "    esac",
        "  fi",
        "  while IFS= read -r word; do",
        "    [[ -n $word ]] || continue",
        '    COMPREPLY+=("$word")',
        "    # A key of the configuration goes on after its =.",
        "    if [[ $word == *[=:] ]] && type compopt >/dev/null 2>&1; then compopt -o nospace; fi",
        '  done < <(compgen -W "$words" -- "$current")',
        "}",
        "# Where nothing is known, names of files are completed.",
        f"complete -o bashdefault -o default -F _spark_dbp {PROG}",
    ])  # fmt: skip


def write_zsh(known: list[Known]) -> str:
    """The script for zsh; a file ``_spark-dbp`` on the fpath, or sourced."""
    commands = [one.name for one in known if one.name]
    scan = _SCAN.format(first=2, current="CURRENT", words="words", commands="|".join(commands))
    values, options, places = [], [], []
    for one in known:
        for name, (_, value) in one.options.items():
            if value is None:
                continue
            do = f"compadd -S '' -- {' '.join(map(shlex.quote, value.words))}" if value.words else "_files"
            times = "*" if value.several else "1"
            case = shlex.quote(f"{one.name}:{name}:") + times
            values.append(f"    {case}) [[ $PREFIX == -* ]] || {{ {do}; return }} ;;")
        described = [shlex.quote(f"{name}:{_shorten(about)}") for name, (about, _) in one.options.items()]
        options.append(f"      {one.name or repr('')}) found=({' '.join(described)}) ;;")
        if one.places.words:
            words = " ".join(map(shlex.quote, one.places.words))
            places.append(f"    {one.name}) compadd -- {words} ;;")
    described = [shlex.quote(f"{one.name}:{_shorten(one.about)}") for one in known if one.name]
    return "\n".join([
        f"#compdef {PROG}",
        f"# Completion of {PROG} for zsh. Made by `{PROG} completion zsh`; starts nothing.",
        "_spark_dbp() {",
        "  local -a found",
        scan,
        '  case "$command:$option:$last" in',
        *values,
        "  esac",
        "  if [[ $PREFIX == -* ]]; then",
        '    case "$command" in',
        *options,
        "    esac",
        "    _describe -o option found",
        "    return",
        "  fi",
        "  if [[ -z $command ]]; then",
        f"    found=({' '.join(described)})",
        "    _describe command found",
        "    return",
        "  fi",
        '  case "$command" in',
        *places,
        "  esac",
        "  _files",
        "}",
        "if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then",
        '  _spark_dbp "$@"',
        "else",
        f"  compdef _spark_dbp {PROG}",
        "fi",
    ])  # fmt: skip


def write_fish(known: list[Known]) -> str:
    """The script for fish."""
    names = " ".join(one.name for one in known if one.name)
    none_yet = f"not __fish_seen_subcommand_from {names}"
    lines = [f"# Completion of {PROG} for fish. Made by `{PROG} completion fish`; starts nothing."]
    lines += [
        f"complete -c {PROG} -f -n '{none_yet}' -a {one.name} -d {_quote_fish(_shorten(one.about))}"
        for one in known
        if one.name
    ]
    for one in known:
        when = _quote_fish(f"__fish_seen_subcommand_from {one.name}" if one.name else none_yet)
        if one.places.words:
            only = "" if one.places.is_path else " -f"
            lines.append(f"complete -c {PROG}{only} -n {when} -a {_quote_fish(' '.join(one.places.words))}")
        for name, (about, value) in one.options.items():
            spelled = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            takes = ""
            if value is not None:
                takes = f" -x -a {_quote_fish(' '.join(value.words))}" if value.words else " -r -F"
            lines.append(f"complete -c {PROG} -n {when} {spelled}{takes} -d {_quote_fish(_shorten(about))}")
    return "\n".join(lines)


def _quote_fish(text: str) -> str:
    """A text in single quotes as fish reads it.

    Examples
    --------
    >>> print(_quote_fish("it's"))
    'it\\'s'
    """
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _shorten(about: str) -> str:
    """What an option is for, without what follows in brackets or after a semicolon."""
    for stop in (" (", "; ", ": "):
        about = about.partition(stop)[0]
    return about


def write_script(shell: str, commands: argparse._SubParsersAction, options: Options) -> str:
    """The script for a shell.

    Parameters
    ----------
    shell : {"bash", "zsh", "fish"}
    commands, options
        As for `read_parsers`.

    Returns
    -------
    str
    """
    write = {"bash": write_bash, "zsh": write_zsh, "fish": write_fish}[shell]
    return write(read_parsers(commands, options))
