"""The commands on shards of a WebDataset: ``index``, ``reshard``. Imports `exchange` and what is below."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from spark_dbp.commands.output import print_json, print_text
from spark_dbp.commands.parsers import Options, add_command
from spark_dbp.commands.shared import keep_spark_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.exchange.reshard import ReshardReport
    from spark_dbp.loaders.index_writer import IndexReport

# The exit code where kept keys are in no shard: what there is was written.
_MISSING = 3
_JSON = "print the result as one JSON document"


def add_commands(commands: argparse._SubParsersAction, options: Options) -> None:
    """Add the parsers of these commands."""
    index = add_command(
        commands, options, "index", _index,
        "find out where the kept samples lie in the shards of a WebDataset, for the loaders",
        examples=[
            "index RUN --shards 's3://lake/{00000..00127}.tar' --out INDEX",
            "index RUN --shards shards/ --key json:uid --out INDEX",
        ],
        json=_JSON,
    )  # fmt: skip
    _add_shards(index, "directory of the index, new or empty")

    reshard = add_command(
        commands, options, "reshard", _reshard, "write the kept samples of a WebDataset to new shards",
        examples=[
            "reshard RUN --shards shards/ --out NEW",
            "reshard RUN --shards shards/ --size 500MB --out NEW",
        ],
        json=_JSON, interrupted=None,
    )  # fmt: skip
    _add_shards(reshard, "directory of the new shards: new, empty, or that of the same command before")
    cut = reshard.add_mutually_exclusive_group()
    cut.add_argument("--samples", type=int, metavar="N", help="samples of a new shard (default: 10,000)")
    cut.add_argument("--size", metavar="BYTES", help="most bytes of a new shard instead, such as 500MB")


def _add_shards(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    parser.add_argument(
        "--shards",
        metavar="GLOB",
        nargs="+",
        required=True,
        help="tars, folders, globs, or ranges such as s3://lake/{00000..00127}.tar",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help=out)
    parser.add_argument(
        "--key",
        default="webdataset",
        help="how the run's key is made of a sample: webdataset (its __key__), json:FIELD, shard/key",
    )


def _start(command: str, parsed: argparse.Namespace) -> SparkSession:
    from spark_dbp.engine.session import get_session
    from spark_dbp.loaders.keys import open_key_form
    from spark_dbp.settings import apply_settings

    settings = keep_spark_settings(command, parsed.settings)
    open_key_form(parsed.key)  # refused before Spark starts
    return get_session(apply_settings({}, settings).get("spark"))


def _index(parsed: argparse.Namespace) -> int:
    from spark_dbp.exchange.index_shards import index_shards
    from spark_dbp.lake import files

    spark = _start("index", parsed)
    report = index_shards(parsed.run, parsed.shards, parsed.out, spark, key=parsed.key)
    out = files.normalize(parsed.out)
    if parsed.json:
        print_json({"out": out, **report.info, **_describe(report)})
    else:
        info = report.info
        samples = f"{info['n_kept']:,} of {info['n_samples']:,} ({_share(info['n_kept'], info['n_samples'])})"
        n_bytes = f"{info['kept_bytes']:,} ({_share(info['kept_bytes'], info['bytes'])})"
        lines = [
            ("shards", f"{info['n_shards']:,}, {info['bytes']:,} bytes"),
            ("kept", f"{samples} samples, {n_bytes} bytes"),
            *_tell(_describe(report), info["n_kept"]),
        ]
        _print(out, lines)
    return _MISSING if report.missing else 0


def _reshard(parsed: argparse.Namespace) -> int:
    from spark_dbp.exchange.plan_shards import parse_size
    from spark_dbp.exchange.reshard import reshard

    if parsed.size is not None:
        parse_size(parsed.size)
    report = reshard(
        parsed.run, parsed.shards, parsed.out, _start("reshard", parsed),
        samples=parsed.samples, size=parsed.size, key=parsed.key,
    )  # fmt: skip
    if parsed.json:
        more = {"taken_over": report.taken_over, "seconds": round(report.seconds, 3)}
        print_json({"out": report.out, **report.info, **more})
    else:
        _print(report.out, _summarize(report))
    return _MISSING if report.missing else 0


def _summarize(report: ReshardReport) -> list[tuple[str, str]]:
    info = report.info
    dropped = 1 - info["samples"] / info["samples_in"]
    taken = f" ({report.taken_over:,} of them were there already)" if report.taken_over else ""
    if dropped >= 0.8:
        advice = "new shards pay"
    elif dropped > 0.5:
        advice = "new shards pay where the data is read for several epochs, or lies in a store"
    else:
        advice = "filtering while loading (spark-dbp index) costs little, and needs no second copy"
    return [
        ("shards", f"{len(report.shards):,}{taken}, with sizes.json and _stats.json of each"),
        ("samples", f"{info['samples']:,} of {info['samples_in']:,}; {dropped:.1%} dropped"),
        ("bytes", f"{info['bytes_in']:,} in, {info['bytes_out']:,} out; {report.share_kept:.1%} kept"),
        ("an epoch", f"that streams whole shards reads {info['bytes_in']:,} bytes of the old ones, "
                     f"{info['bytes_out']:,} of the new ones"),
        ("advice", f"with {dropped:.0%} dropped, {advice}"),
        *_tell(info, info["samples"]),
    ]  # fmt: skip


def _describe(report: IndexReport) -> dict[str, Any]:
    values = dict(vars(report))
    del values["info"]
    return values


def _tell(found: dict[str, Any], n_kept: int) -> list[tuple[str, str]]:
    """What is odd about the keys."""
    lines = []
    if found["missing"]:
        hint = "" if n_kept else "; none is found, so see --key"
        shown = _list(found["missing_examples"], found["missing"])
        lines.append(("missing", f"{found['missing']:,} kept keys are in no shard: {shown}{hint}"))
    if found["twice"]:
        shown = _list(found["twice_examples"], found["twice"])
        what = f"{found['twice']:,} kept keys are those of several samples, all of which are taken: {shown}"
        lines.append(("twice", what))
    if found["without_key"]:
        what = (
            f"{found['without_key']:,} samples have no key, and are left out: {found['without_key_example']}"
        )
        lines.append(("no key", what))
    return lines


def _list(examples: list[str], count: int) -> str:
    return ", ".join(map(repr, examples)) + (", ..." if count > len(examples) else "")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def _print(out: str, lines: list[tuple[str, str]]) -> None:
    print_text("\n".join([out, *(f"{label:<12}{text}" for label, text in lines)]))
