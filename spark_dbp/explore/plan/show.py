"""A plan as text and as HTML. Imports `seen`, `costs` and what is in a `planned.Plan`; no Spark."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spark_dbp.explore.plan.costs import FACTOR, START
from spark_dbp.lake import files
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from spark_dbp.explore.plan.planned import Plan, PlannedStep
    from spark_dbp.explore.plan.sizes import TableSize

_WIDTH = 100
_STEP_HEAD = ("step", "", "rows", "read", "written", "shuffled", "time", "worker")
_TABLE_HEAD = ("table", "rows", "bytes", "files", "")


def write_bytes(n: float) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> write_bytes(0), write_bytes(900), write_bytes(98_873_067), write_bytes(3.2e12)
    ('-', '900 B', '98.9 MB', '3.2 TB')
    """
    if not n:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or n >= 99.95 else f"{n:.1f} {unit}"
        n /= 1000
    return ""


def write_seconds(seconds: float | None) -> str:
    """A time for people.

    Examples
    --------
    >>> write_seconds(None), write_seconds(2.4), write_seconds(400), write_seconds(20_000)
    ('?', '2 s', '7 min', '5.6 h')
    """
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def write_plan(plan: Plan) -> str:
    """The whole plan as text, at most 100 columns wide."""
    blocks = [
        _write_head(plan),
        _align(_STEP_HEAD, [_list_step(step) for step in plan.steps], left={0, 1}),
        _write_reasons(plan.steps),
        _align(_TABLE_HEAD, _list_tables(plan), left={0, 4}),
        _write_rest(plan),
    ]
    return redact("\n\n".join(block for block in blocks if block))


def write_html(plan: Plan) -> str:
    """The whole plan as HTML, for a notebook."""

    def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        def line(tag: str, cells: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(redact(cell))}</{tag}>' for cell in cells)}</tr>"

        return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"

    def text(block: str) -> str:
        return f"<pre>{html.escape(redact(block))}</pre>" if block else ""

    return (
        text(_write_head(plan))
        + table(_STEP_HEAD, [_list_step(step) for step in plan.steps])
        + text(_write_reasons(plan.steps))
        + table(_TABLE_HEAD, _list_tables(plan))
        + text(_write_rest(plan))
    )


def _write_head(plan: Plan) -> str:
    seen, config = plan.seen, plan.config
    size = "" if seen.files is None else f" in {seen.files:,} file{'s' * (seen.files != 1)}"
    size += f" of {write_bytes(seen.bytes)}" if seen.bytes else ""
    key = str(config.input.key)
    kind = seen.name_type(key) if seen.is_known(key) else "of a type not known here"
    of = f"key {key} ({kind})"
    of += f", {seen.dimension:,} dimensions" if seen.dimension else ""
    checked = f"; {seen.n_checked:,} rows checked" if seen.n_checked else ""
    path = files.normalize(config.output.path)
    there = "a finished run is there" if plan.has_run else "no finished run is there"
    if not plan.has_run and any(step.judged.known is not None for step in plan.steps):
        there = "a run was begun there"
    lines = [
        ("input", seen.name),
        ("", f"{seen.rows} rows{size}; {of}{checked}"),
        ("output", f"{path} ({there})"),
        ("engine", f"{plan.engine.name}, predicted: {plan.engine.why} (spark-dbp doctor asks)"),
    ]
    if plan.in_use is not None:
        lines.append(("in use", f"{plan.in_use} is at work there: a run would be refused until it ends"))
    return _write_pairs(lines)


def _write_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    lines = []
    for name, text in pairs:
        wrapped = textwrap.wrap(text, _WIDTH - 12, break_on_hyphens=False) or [""]
        lines += [f"{name if number == 0 else '':<12}{line}".rstrip() for number, line in enumerate(wrapped)]
    return "\n".join(lines)


def _list_step(step: PlannedStep) -> list[str]:
    cost, judged = step.cost, step.judged
    if cost is None:
        return [judged.step.name, "reused", "-", "-", "-", "-", "-", "-"]
    what = {"new": "new", "changed": "changed", "follows": "follows", "damaged": "damaged"}[judged.status]
    return [
        judged.step.name,
        what,
        f"{cost.rows_read:,}" if cost.rows_read else "-",
        write_bytes(cost.bytes_read),
        write_bytes(cost.bytes_written),
        write_bytes(cost.bytes_shuffled),
        write_seconds(cost.seconds),
        write_bytes(cost.worker_bytes),
    ]


def _write_reasons(steps: Sequence[PlannedStep]) -> str:
    """Why steps are computed anew; nothing for a first run."""
    pairs = []
    for step in steps:
        judged = step.judged
        if judged.status in ("changed", "damaged"):
            text = judged.why
            text += f" (and {_join(judged.follows)} before it)" if judged.follows else ""
            pairs.append((judged.step.name, text))
    following = [step.judged for step in steps if step.judged.status == "follows"]
    if following:
        names = ", ".join(judged.step.name for judged in following)
        pairs.append((names, "only because steps before are computed anew"))
    is_new = [step.judged.step.name for step in steps if step.judged.status == "new"]
    if is_new and len(is_new) < len(steps):
        pairs.append((", ".join(is_new), "not finished before"))
    same = sorted({name for step in steps for name in step.judged.if_same if step.judged.is_reused})
    if same:
        of_session = [name for name in same if name.startswith("spark.")]
        shown = [name for name in same if name not in of_session]
        shown += [f"{len(of_session)} settings of the session"] if of_session else []
        pairs.append(("taken as unchanged, for a plan does not see them", _join(shown)))
    if not pairs:
        return ""
    lines = ["why"]
    for name, text in pairs:
        lines += textwrap.wrap(
            f"{name}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    return "\n".join(lines)


def _join(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    Examples
    --------
    >>> _join(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _list_tables(plan: Plan) -> list[list[str]]:
    rows, shared = [], set()
    for step in plan.steps:
        for name, table in step.tables.items():
            note = "there" if table.is_known else ""
            if step.cost is not None and step.cost.bytes_written == 0 and not table.is_known:
                note = "in the files of another table"
                shared.add(name)
            rows.append(_list_table(name, table, note))
    return rows


def _list_table(name: str, table: TableSize, note: str) -> list[str]:
    sign = {"exact": "", "at most": "<= ", "about": "~ "}[table.bytes_are]
    return [name, str(table.rows), f"{sign}{write_bytes(table.bytes)}", f"{table.files:,}", note]


def _write_rest(plan: Plan) -> str:
    found = plan.to_dict()
    total = found["total"]
    lines = [("quotas", plan.quotas.why)]
    if plan.quotas.mend:
        lines.append(("", f"{'if not' if plan.quotas.is_ok else 'to mend it'}: {plan.quotas.mend}"))
    if plan.catalog:
        lines.append(("catalog", ", ".join(plan.catalog)))
    lines += [("not checked", text) for text in plan.unchecked]
    lines += [("note", text) for text in plan.seen.notes]
    sign = "~ " if plan.assumes else ""
    memory = f"driver {sign}{write_bytes(total['driver_bytes'])} beside Spark's spark.driver.memory"
    lines.append(("memory", f"{memory}; each Python worker {sign}{write_bytes(total['worker_bytes'])}"))
    how_right = "for the dimension assumed" if plan.assumes else f"right within a factor of {FACTOR:g}"
    time = f"{sign}{write_seconds(plan.seconds)}, {how_right}"
    time += f" ({START:.0f} s of it to start and end; {total['machine']})"
    if total["not_in_seconds"]:
        time += f", without {', '.join(total['not_in_seconds'])}"
    written, read = (f"{sign}{write_bytes(total[name])}" for name in ("bytes_written", "bytes_read"))
    lines += [("total", f"{written} written, {read} read"), ("", time)]
    anew = sum(step.cost is not None for step in plan.steps)
    lines.append(("", f"{len(plan.steps) - anew} of {len(plan.steps)} steps reused"))
    return _write_pairs(lines)


def _align(head: Sequence[str], rows: Sequence[Sequence[str]], left: set[int]) -> str:
    """Columns side by side: those in `left` begin at the left, numbers end at the right."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(widths[n]) if n in left else cell.rjust(widths[n]) for n, cell in enumerate(cells)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in (head, *rows))
