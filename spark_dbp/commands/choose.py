"""The command that helps to choose settings: ``sweep``. Imports `explore` and `lake`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.commands.output import find_width, print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import keep_spark_settings, open_run_without_spark
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake.paths import locate

if TYPE_CHECKING:
    from spark_dbp.runs import Run

_ABOUT = """\
Say what other settings would keep of a finished run, from its statistics alone: nothing is clustered.
Settings that are not given are those of the run. Without any option: how many samples each eps of
semantic deduplication removes."""
_EXAMPLES = [
    "sweep RUN --keep-ratio 0.1,0.2,0.3 --temperature 0.01,0.03,0.1",
    "sweep RUN --keep-ratio 0.1,0.3 --complexity 'd_intra,d_intra*d_inter,uniform' --plot sweep.png",
    "sweep RUN --saturated-at-most 5  # the temperature at which at most 5 clusters are kept whole",
    "sweep RUN --dedup-to 50000  # the eps that leaves 50,000 samples",
]
_SUFFIXES = (".png", ".svg", ".pdf")


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parser of this command."""
    sweep = add_command(
        commands, options, "sweep", _sweep, "show what other ratios, temperatures or eps would keep of a run",
        description=_ABOUT, examples=_EXAMPLES, json="print the rows as one JSON list instead",
    )  # fmt: skip
    sweep.add_argument("run", metavar="RUN", help="directory of a finished run")
    sweep.add_argument("--keep-ratio", metavar="A,B", action="append", help="shares of the samples to keep")
    sweep.add_argument("--temperature", metavar="A,B", action="append", help="temperatures of the softmax")
    sweep.add_argument(
        "--complexity", metavar="A,B", action="append", help="what the weights rest on, as prune.complexity"
    )
    sweep.add_argument(
        "--saturated-at-most",
        metavar="S",
        help="find the lowest temperature with at most S clusters kept whole",
    )
    sweep.add_argument(
        "--dedup-to", metavar="N", help="find the eps at which semantic deduplication leaves N samples"
    )
    sweep.add_argument("--csv", metavar="FILE", help="also write the rows to a CSV file")
    sweep.add_argument("--plot", metavar="FILE", help="also draw them: .png, .svg or .pdf (needs matplotlib)")


def _sweep(parsed: argparse.Namespace) -> int:
    settings = keep_spark_settings("sweep", parsed.settings)
    ask: Callable[[Run, argparse.Namespace], tuple[list[dict[str, Any]], str]]
    needs: list[str]
    if _check_options(parsed):
        ask, needs = _sweep_pruning, ["cluster_stats", "quotas"]
    elif parsed.dedup_to is not None:
        ask, needs = _find_eps, ["semantic_pairs"]
    else:
        ask, needs = _list_eps, []
    rows, text = ask(open_run_without_spark(parsed.run, settings, needs), parsed)
    if parsed.csv is not None:
        _write_csv(parsed.csv, rows)
    if parsed.json:
        print_json(rows)
    else:
        print_text(text)
    return 0


def _check_options(parsed: argparse.Namespace) -> bool:
    """Refuse options that do not go together. Returns whether they ask for what pruning would keep."""
    given = {
        f"--{name.replace('_', '-')}": getattr(parsed, name) is not None
        for name in ("keep_ratio", "temperature", "complexity", "saturated_at_most", "dedup_to", "plot")
    }
    asks = [name for name in list(given)[:4] if given[name]]
    if given["--dedup-to"] and asks:
        raise ConfigError(
            f"--dedup-to asks for eps, {asks[0]} for what pruning keeps", mend="ask for one at a time"
        )
    if given["--saturated-at-most"] and given["--temperature"]:
        raise ConfigError("--saturated-at-most finds the temperature", mend="leave --temperature out")
    if given["--plot"] and not asks:
        raise ConfigError(
            "--plot draws what pruning would keep, and nothing asks for that",
            mend="give --keep-ratio, --temperature or --complexity",
        )
    if given["--plot"] and not parsed.plot.lower().endswith(_SUFFIXES):
        raise ConfigError(
            f"--plot {parsed.plot}: the end of the name says the format", mend=f"give {', '.join(_SUFFIXES)}"
        )
    for name in ("plot", "csv"):
        path = getattr(parsed, name)
        if path is not None and _lies_below(path, parsed.run):
            raise ConfigError(
                f"--{name} {path} lies in the run directory, which holds the run's own files",
                mend="name a file elsewhere",
            )
    if given["--plot"]:
        from spark_dbp.explore.plots import check_matplotlib

        check_matplotlib()
    return bool(asks)


def _lies_below(path: str, directory: str) -> bool:
    return f"{locate(path)}/".startswith(f"{locate(directory)}/")


def _sweep_pruning(run: Run, parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    from spark_dbp.explore.sweep import find_temperature, sweep

    ratios, temperatures, kinds = (
        _split(getattr(parsed, name)) for name in ("keep_ratio", "temperature", "complexity")
    )
    if parsed.saturated_at_most is None:
        found = sweep(run, ratios, temperatures, kinds)
    else:
        most = _read_count("--saturated-at-most", parsed.saturated_at_most)
        found = find_temperature(run, most, ratios, kinds)
    if parsed.plot is not None:
        from spark_dbp.explore.plots import encode_figure

        suffix = parsed.plot.lower().rpartition(".")[2]
        Path(parsed.plot).expanduser().write_bytes(encode_figure(found.plot(), suffix))
    return found.to_dicts(), found.format(find_width())


def _find_eps(run: Run, parsed: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    from spark_dbp.explore.choose_eps import find_eps

    row = find_eps(run, _read_count("--dedup-to", parsed.dedup_to))
    all_rows = row["left"] + row["removed"]
    lines = [
        f"eps {row['eps']!r} leaves {row['left']:,} of {all_rows:,} samples ({row['removed']:,} removed, "
        f"{row['share']:.1%}; similarity above {_write_least_similarity(row['eps'])})"
    ]
    lines += [f"hint  {row['hint']}"] if row["hint"] else []
    return [row], "\n".join([*lines, f"in the configuration: dedup.semantic.eps: {row['eps']!r}"])


def _list_eps(run: Run, _: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    from spark_dbp.explore.choose_eps import list_eps

    try:
        rows = list_eps(run)
    except InputError as error:
        raise InputError(
            error.what,
            mend="for what pruning would keep, give --keep-ratio, --temperature or --complexity; for eps, "
            + error.mend,
        ) from None
    lines = [f"{'eps':>8}{'similarity above':>18}{'removed':>14}{'share':>9}"]
    for row in rows:
        used = "  applied" if row["applied"] else ""
        above = _write_least_similarity(row["eps"])
        lines.append(f"{row['eps']:>8g}{above:>18}{row['removed']:>14,}{row['share']:>9.1%}{used}")
    return rows, "\n".join(lines)


def _write_least_similarity(eps: float) -> str:
    """1 - eps, never rounded to 1, which no similarity is above.

    Examples
    --------
    >>> _write_least_similarity(0.05), _write_least_similarity(1e-9), _write_least_similarity(1e-20)
    ('0.95', '0.999999999', '1 - 1e-20')
    """
    return f"1 - {eps:g}" if eps < 1e-12 else f"{1 - Decimal(str(eps)):f}"


def _split(given: list[str] | None) -> list[str] | None:
    """The values of an option, which may be given several times.

    Examples
    --------
    >>> _split(["0.1, 0.2", "0.3"]), _split(None)
    (['0.1', '0.2', '0.3'], None)
    """
    if given is None:
        return None
    return [value.strip() for text in given for value in text.split(",") if value.strip()]


def _read_count(option: str, text: str) -> int:
    try:
        count = int(text.replace(",", ""))
    except ValueError:
        count = -1
    if count < 0:
        raise ConfigError(f"{option} {text!r} is no number of 0 or more", mend="give a whole number")
    return count


def _write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    """A line for each row; what is None is empty."""
    with Path(path).expanduser().open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
