"""Write docs/reference from the program itself. Imports `spark_dbp.config` and `spark_dbp.cli`; no Spark.

The keys, values and defaults of the configuration come from its model, what they mean from the comments of
conf/example.yaml. Commands and options come from the parser. `make reference` writes the pages;
tests/unit/test_site.py fails when they are not current.
"""

from __future__ import annotations

import argparse
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spark_dbp import cli
from spark_dbp.config import RunConfig
from spark_dbp.config_base import Section, SqlColumn

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
# From this column on a comment of the example goes on with the one above it.
_CONTINUES = 24


def list_fields(model: type[Section], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the configuration with its field: sections before what is in them."""
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        for section in find_sections(field.annotation):
            yield from list_fields(section, f"{path}{name}.")


def find_sections(kind: Any) -> list[type[Section]]:
    """The sections that a type of the model holds."""
    if isinstance(kind, type) and not typing.get_args(kind):
        return [kind] if issubclass(kind, Section) and kind is not SqlColumn else []
    return [found for part in typing.get_args(kind) for found in find_sections(part)]


def tell_type(kind: Any, limits: list[Any]) -> str:
    """What may stand there, in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return tell_type(parts[0], [*limits, *parts[1:]])
    if origin in (typing.Union, types.UnionType):
        if set(parts) >= {str, SqlColumn}:  # a column, by its name or as SQL
            others = [part for part in parts if part not in (str, SqlColumn, type(None))]
            return " or ".join(["a column", *(tell_type(part, limits) for part in others)])
        words = list(dict.fromkeys(tell_type(part, limits) for part in parts if part is not type(None)))
        if len(words) == 2 and words[1].startswith("a list of "):
            return f"{words[0]}; or a list of such"
        return " or ".join(words)
    if origin is Literal:
        return ", ".join(f"`{str(part).lower() if isinstance(part, bool) else part}`" for part in parts)
    if origin is list:
        return f"a list of {tell_type(parts[0], [])}".replace("of a column", "of columns").replace(
            "of a whole number", "of whole numbers"
        )
    if origin is dict:
        return "a mapping"
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{tell_limits(limits)}"
    return {bool: "`true` or `false`", str: "text", SqlColumn: "`{sql: EXPRESSION}`"}.get(kind, "a section")


def tell_limits(limits: list[Any]) -> str:
    """The bounds of a number."""
    flat = [one for limit in limits for one in (getattr(limit, "metadata", None) or [limit])]
    words: list[tuple[type, str, str]] = [
        (Ge, "ge", "from"), (Gt, "gt", "above"), (Le, "le", "to"), (Lt, "lt", "below"),
    ]  # fmt: skip
    found = []
    for kind, name, word in words:
        for limit in flat:
            value = getattr(limit, name) if isinstance(limit, kind) else 0
            if isinstance(limit, kind) and abs(value) < 2**62:
                found.append(f"{word} {value:,}")
    return f", {' '.join(found)}".replace(" below", ", below") if found else ""


def tell_default(field: FieldInfo) -> str:
    """The default; empty where there is none."""
    if field.default is PydanticUndefined or field.default is None or isinstance(field.default, Section):
        return ""
    value = field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def read_comments(known: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What conf/example.yaml says about each key and section, and the value that it shows of a key."""
    said: dict[str, list[str]] = {}
    shown: dict[str, str] = {}
    above: list[tuple[int, str]] = []  # the sections around a line, by their indentation
    before: list[str] = []  # lines of comment that no key has yet
    last = ""
    for line in (ROOT / "conf" / "example.yaml").read_text().splitlines():
        plain = re.sub(r"^(\s*)# ?", r"\1", line)  # as if it were not commented out
        found = re.match(r"(\s*)([a-z_]+):(?=\s|$)(.*)", plain)
        if found:
            indent = len(found[1])
            above = [one for one in above if one[0] < indent]
            path = ".".join([*(name for _, name in above), found[2]])
            if path in known:
                above.append((indent, found[2]))
                if path in said:  # another example of a key
                    before = []
                    continue
                shown[path] = re.sub(r"(^|\s)#.*", "", found[3]).strip()
                comment = re.search(r"(?:^|\s)# (.*)$", found[3])
                said[path] = [*before, *([comment[1]] if comment else [])]
                before, last = [], path
                continue
        text = re.match(r"(.*?)# (?:\s*#)?(.*)$", line)
        if text is None:
            before, last = [], last if line.strip() else ""
        elif (
            line.rindex("# ") >= _CONTINUES
            and not line.rstrip().endswith("#")
            and re.fullmatch(r"[\s#]*", line[: line.rindex("# ")])
        ):
            said[last].append(line[line.rindex("# ") + 2 :].strip())
        else:
            before.append(line.split("# ", 1)[1].strip())
    return {path: " ".join(lines) for path, lines in said.items()}, shown


def write_cell(text: str) -> str:
    """A text for a cell of a table. Names of pages become links."""
    text = text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
    return re.sub(r"\b(docs/)?([a-z-]+)\.md\b", r"[\2](../\2.md)", text)


def write_configuration() -> str:
    """The page of the configuration."""
    fields = dict(list_fields(RunConfig))
    said, shown = read_comments(set(fields))
    sections = {"": "", **{path: path for path, field in fields.items() if find_sections(field.annotation)}}
    pages = [_CONFIGURATION]
    for section in sections:
        if section:
            model = find_sections(fields[section].annotation)[0]
            about = said.get(section) or (model.__doc__ or "").strip().split("\n")[0]
            pages += [
                f"{'#' * (2 + section.count('.'))} {section}\n",
                f"{about[:1].upper()}{write_cell(about[1:])}\n",
            ]
        inside = [path for path in fields if path.rpartition(".")[0] == section and path not in sections]
        if inside:
            pages += ["| key | value | default | |", "|---|---|---|---|"]
            pages += [
                write_key(path, fields[path], said.get(path, ""), shown.get(path, "")) for path in inside
            ]
            pages.append("")
    return "\n".join(pages)


def write_key(path: str, field: FieldInfo, said: str, shown: str) -> str:
    """A line of the table: the key, what may stand there, its default, and what it means."""
    kind = tell_type(field.annotation, list(field.metadata)).replace("|", "\\|")
    default = "**needed**" if field.is_required() else tell_default(field)
    begins = re.match(r"the default( for images)?\W+", said)
    if begins:  # the value shown is the default, although the model leaves it to the program
        default, said = default or f"`{shown}`{begins[1] or ''}", said[begins.end() :]
    said = re.sub(r" \(default\)", "", said)
    if said.startswith("or ") and shown:  # the comment goes on from the value that stands before it
        said = f"{shown}, {said}"
    if shown and (not default or field.is_required()) and not shown.startswith("{"):
        said += f"{'. ' if said and not said.endswith('.') else ' ' if said else ''}For example `{shown}`"
    return f"| `{path}` | {kind} | {default.replace('|', chr(92) + '|')} | {write_cell(said)} |"


def find_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    make = getattr(cli, "make_parser", None) or cli._parser
    return make()


def list_commands(parser: argparse.ArgumentParser) -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Name, purpose and parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shown = (one for one in action._choices_actions if one.help != argparse.SUPPRESS)
            purposes = {one.dest: one.help or "" for one in shown}
            return [(name, purposes[name], one) for name, one in action.choices.items() if name in purposes]
    return []


def list_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Arguments and options that are shown, without ``--help``."""
    shown = (one for one in parser._actions if one.help != argparse.SUPPRESS)
    kept = [one for one in shown if not isinstance(one, argparse._HelpAction | argparse._SubParsersAction)]
    # `--set` takes all that follows, so it comes last.
    return sorted(kept, key=lambda one: (bool(one.option_strings), "--set" in one.option_strings))


def write_usage(action: argparse.Action) -> str:
    """An argument or option as it is typed."""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.choices is not None and action.metavar is None:
        value = "|".join(map(str, action.choices))
    many = {"+": f"{value} ...", "*": f"[{value} ...]", "?": f"[{value}]"}
    value = many.get(str(action.nargs), value)
    text = " ".join(
        part for part in (action.option_strings[-1] if action.option_strings else "", value) if part
    )
    return text if action.required or not action.option_strings else f"[{text}]"


def write_options(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """A table of arguments and options."""
    formatter = argparse.HelpFormatter(parser.prog)
    lines = ["| option | |", "|---|---|"]
    for action in actions:
        names = ", ".join(action.option_strings)
        value = (
            ""
            if action.nargs == 0
            else str(action.metavar or (action.choices and "|".join(action.choices)) or action.dest.upper())
        )
        shown = " ".join(part for part in (names, value) if part).replace("|", "\\|")
        lines.append(f"| `{shown}` | {write_cell(formatter._expand_help(action) if action.help else '')} |")
    return "\n".join(lines) + "\n"


def write_sentence(text: str) -> str:
    """A description as a sentence or more."""
    text = write_cell(textwrap.dedent(text).strip())
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def write_commands() -> str:
    """The page of the commands."""
    parser = find_parser()
    commands = list_commands(parser)
    pages = [_COMMANDS, "| command | |", "|---|---|"]
    pages += [f"| [`{name}`](#{name}) | {write_cell(purpose)} |" for name, purpose, _ in commands]
    pages += ["", "Before or after the command:", "", write_options(parser, list_options(parser))]
    common = {option for action in list_options(parser) for option in action.option_strings}
    for name, purpose, one in commands:
        shown = [a for a in list_options(one) if not common & set(a.option_strings)]
        usage = " ".join(
            [f"spark-dbp {name}", *(write_usage(action).replace(" ", "\xa0") for action in shown)]
        )
        usage = textwrap.fill(
            usage, 100, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
        )
        pages += [
            f"## {name}\n",
            f"{write_sentence(one.description or purpose)}\n",
            f"```text\n{usage}\n```\n",
        ]
        pages.append(write_options(one, shown))
        if one.epilog:
            text = re.sub(r"\A\s*examples:?[ \t]*\n", "", one.epilog, flags=re.IGNORECASE)
            pages.append(f"```text\n{textwrap.dedent(text.strip(chr(10))).strip()}\n```\n")
    return "\n".join(pages)


_CONFIGURATION = """# Configuration

<!-- Written by `make reference` from spark_dbp/config.py and conf/example.yaml; change those. -->

A run is described by a YAML file. Keys that are unknown are refused, with the nearest known name.
[conf/example.yaml](../../conf/example.yaml) has all of them in their places. `--set a.b=value` overrides keys
on the command line, `RunConfig.from_dict` takes the same as a mapping. *A column* is its name, a field of a
struct (`features.clip`), or `{sql: EXPRESSION}` ([columns](../columns.md)).
"""

_COMMANDS = """# Commands

<!-- Written by `make reference` from the parser of spark_dbp/cli.py; change that. -->

`spark-dbp COMMAND --help` says the same. `python -m spark_dbp` is the same program. Errors go to stderr as
one message: what is wrong, where, and what mends it.

| exit code | |
|---|---|
| 0 | done |
| 2 | usage or configuration |
| 3 | input refused, a run found damaged, keys that are not there, or `doctor` found a problem |
| 4 | another process uses the run, or what is there belongs to something else |
| 1 | anything else |
"""


def write_pages() -> dict[Path, str]:
    """The pages of the reference: where they belong, and their texts."""
    return {
        REFERENCE / "configuration.md": write_configuration(),
        REFERENCE / "commands.md": write_commands(),
    }


if __name__ == "__main__":
    for place, text in write_pages().items():
        place.write_text(text, encoding="utf-8")
        print(place.relative_to(ROOT))
