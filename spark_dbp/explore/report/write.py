"""Write the report of a finished run. Imports the modules beside it, `config`, `lake` and `runs`; Spark
only where images or texts are looked up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.errors import ConfigError, ConflictError
from spark_dbp.explore.report import page, words
from spark_dbp.explore.report.clusters import (
    MOST_HISTOGRAMS,
    Clusters,
    count_in_cells,
    list_columns,
    round_number,
)
from spark_dbp.explore.report.contents import Contents, fit_contents
from spark_dbp.explore.report.examples import (
    ClusterExamples,
    Duplicates,
    find_duplicates,
    find_examples,
    find_key_type,
)
from spark_dbp.explore.report.lookup import Found, find_wanted, look_up
from spark_dbp.explore.report.sections import list_sections, say_left_out
from spark_dbp.lake import files, paths
from spark_dbp.secrets import redact

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run

# Bytes of the whole file.
MOST_BYTES = 2_000_000


@dataclass(frozen=True)
class WrittenReport:
    """What was written.

    Attributes
    ----------
    path : str
    bytes : int
    clusters : int
        Clusters with samples.
    clusters_listed, clusters_shown : int
        Those in the table, and those with examples.
    examples, pairs, thumbnails, captions : int
    left_out : dict of str to int
        What is not on the page, and how much of it: ``clusters_listed``, ``clusters_shown``,
        ``thumbnails``, and images by what is wrong with them.
    note : str
        Why neither images nor texts are shown, although they were asked for; or empty.
    """

    path: str
    bytes: int
    clusters: int
    clusters_listed: int
    clusters_shown: int
    examples: int
    pairs: int
    thumbnails: int
    captions: int
    left_out: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def describe(self) -> str:
        """The same for people."""
        lines = [
            f"{self.bytes:,} bytes",
            f"{self.clusters_shown:,} of {words.write_count(self.clusters, 'cluster')} with "
            f"{words.write_count(self.examples, 'example')}",
            f"{words.write_count(self.thumbnails, 'thumbnail')}, {words.write_count(self.captions, 'text')}",
        ]
        bad = {name: n for name, n in self.left_out.items() if not name.startswith("clusters_")}
        lines += [f"not shown: {n:,} {reason}" for reason, n in bad.items()]
        return "\n".join([*lines, *([self.note] if self.note else [])])


def write_report(
    run: Run,
    out: str | os.PathLike[str] | None = None,
    settings: Iterable[str] = (),
    spark: SparkSession | None = None,
) -> WrittenReport:
    """Write one HTML file about a run: offline, at most 2 MB, the same bytes for the same run.

    Parameters
    ----------
    run : Run
    out : str or path, optional
        A file on this machine; by default ``RUN-report.html`` here. An earlier report there is replaced.
    settings : iterable of str
        Items like ``report.image=jpeg``, ``report.caption=caption``; and ``spark.*`` for a session that is
        started.
    spark : SparkSession, optional
        Used only to look up images and texts in the input; by default that of `get_session`.

    Returns
    -------
    WrittenReport

    Raises
    ------
    ConfigError
        When `out` lies in the run, or is no place for a file; or Pillow is missing.
    ConflictError
        When another file is at `out`.
    InputError
        When a column to be shown is not there.

    Examples
    --------
    >>> write_report(open_run("demo-run/run")).path  # doctest: +SKIP
    '/work/run-report.html'
    """
    target = choose_target(run, out)
    content, written = make_report(run, settings, spark)
    files.write_bytes(target, content)
    return WrittenReport(path=target, bytes=len(content), **written)


def choose_target(run: Run, out: str | os.PathLike[str] | None) -> str:
    """Where the report goes.

    Raises
    ------
    ConfigError, ConflictError
    """
    name = os.path.basename(run.path.rstrip("/")) or "run"  # noqa: PTH119  (a URI too)
    given = os.fspath(out) if out is not None else f"{name}-report.html"
    if not files.is_local(given):
        raise ConfigError(
            f"--out {given} is no file on this machine", mend="name a local file, and copy it from there"
        )
    target = os.path.abspath(files.normalize(given))  # noqa: PTH100  (it may not be there yet)
    if files.is_local(run.path) and paths.lies_in(str(Path(target).resolve()), str(Path(run.path).resolve())):
        raise ConfigError(
            f"--out {target} lies in the run {run.path}, which holds only what the run wrote",
            mend="give --out a file elsewhere",
        )
    place = Path(target)
    if place.is_dir():
        raise ConfigError(f"--out {target} is a directory", mend="name a file, such as report.html")
    if place.exists():
        with place.open("rb") as stream:
            if stream.read(len(page.MARK)) != page.MARK.encode():
                raise ConflictError(
                    f"--out {target} is there and no report", mend="name another file, or delete it"
                )
    return target


def make_report(
    run: Run, settings: Iterable[str] = (), spark: SparkSession | None = None
) -> tuple[bytes, dict[str, Any]]:
    """The file, and what `WrittenReport` says of it."""
    settings = list(settings)
    config = run.config().with_settings(settings)
    clusters = Clusters(run)
    in_full = clusters.choose_in_full()
    examples = find_shown(run, clusters, list(in_full))
    duplicates = find_duplicates(run)
    found = Found()
    wanted = find_wanted(config)
    if wanted:
        from spark_dbp.engine.session import get_session

        keys = gather_keys(examples, duplicates)
        found = look_up(run, wanted, spark or get_session(config.spark), keys, find_key_type(run))
    data = _make_data(run, clusters, in_full)
    head_and_sections = _Writer(run, clusters, duplicates, found)
    contents = fit_contents(
        examples,
        duplicates,
        found,
        find_key_type(run),
        {int(clusters.cluster_id[row]): whys for row, whys in in_full.items()},
        lambda contents: len(head_and_sections(data, contents)),
        MOST_BYTES,
    )
    content = head_and_sections(data, contents)
    left_out = {
        "clusters_listed": len(clusters) - len(data["clusters"]["id"]),
        "clusters_shown": len(clusters) - len(contents.examples),
        "thumbnails": contents.n_thumbnails_left_out,
        **found.problems,
    }
    return content, {
        "clusters": len(clusters),
        "clusters_listed": len(data["clusters"]["id"]),
        "clusters_shown": len(contents.examples),
        "examples": contents.n_examples,
        "pairs": sum(map(len, contents.pairs.values())),
        "thumbnails": len(contents.thumbnails),
        "captions": contents.n_captions,
        "left_out": {name: n for name, n in left_out.items() if n},
        "note": redact(found.note),
    }


def find_shown(run: Run, clusters: Clusters, rows: list[int]) -> dict[int, ClusterExamples]:
    """Examples of the clusters of these rows."""
    chosen = sorted(rows)
    columns = (clusters.cluster_id[chosen], clusters.quota[chosen], clusters.n_items[chosen])
    return find_examples(run, *(column.tolist() for column in columns))


def gather_keys(examples: dict[int, ClusterExamples], duplicates: dict[str, Duplicates]) -> Any:
    """All keys that are shown, each once."""
    import pyarrow as pa

    rows = [one.key for of in examples.values() for one in (*of.kept, *of.dropped, *of.nearest)]
    pairs = [key for of in duplicates.values() for pair in of.pairs for key in (pair.key, pair.duplicate_of)]
    keys = rows + pairs
    # Not by way of Python, which has no value for text that is not UTF-8.
    return pa.concat_arrays([pa.repeat(key, 1) for key in keys]).unique() if keys else pa.array([])


class _Writer:
    """Writes the page with given contents, to see how large it is."""

    def __init__(self, run: Run, clusters: Clusters, duplicates: dict[str, Duplicates], found: Found) -> None:
        self.run, self.clusters, self.duplicates, self.found = run, clusters, duplicates, found

    def __call__(self, data: dict[str, Any], contents: Contents) -> bytes:
        name = os.path.basename(self.run.path.rstrip("/")) or self.run.path  # noqa: PTH119
        document, summary = self.run.document, self.run.document["summary"]
        account = document["accounting"]
        rows, reached, kept = account["rows_in"], summary["rows_to_prune"], account["kept"]
        tiles = [
            ("Rows in", f"{rows:,}", ""),
            ("Reached pruning", f"{reached:,}", words.write_share(reached, rows)),
            ("Kept", f"{kept:,}", f"{words.write_share(kept, reached)} of these"),
            ("Clusters", f"{summary['clusters']:,}", f"{summary['saturated']:,} kept whole"),
        ]
        notes = [self.found.note] if self.found.note else []
        notes += say_left_out(self.clusters, data, contents, self.found)
        head = page.write_head(name, words.say_summary(document), tiles, [redact(note) for note in notes])
        sections = list_sections(self.run, self.clusters, self.duplicates, data, contents)
        return page.fill_page(f"{name}: pruning report", sections, head, {**data, **contents.to_dict()})


def _make_data(run: Run, clusters: Clusters, in_full: dict[int, list[str]]) -> dict[str, Any]:
    """What the scripts show of the clusters."""
    listed = clusters.choose_listed(in_full)
    rows = list(in_full) + [row for row in listed.tolist() if row not in in_full]
    with_histogram = rows[:MOST_HISTOGRAMS]
    prune = run.document["config"]["prune"]
    is_sampled = len(listed) < len(clusters)
    return {
        "clusters": list_columns(clusters, listed),
        "total": len(clusters),
        "cells": count_in_cells(clusters) if is_sampled else None,
        "which": prune["which_to_keep"],
        "temperature": prune["temperature"],
        "measure": prune["complexity"],
        "histogram": clusters.sum_histogram(),
        "histograms": {str(clusters.cluster_id[row]): clusters.make_histogram(row) for row in with_histogram},
        "kmeans": [
            {"objective": round_number(step["objective"]), "moved": step["n_moved"]}
            for step in run.document.get("kmeans", {}).get("history", [])
        ],
    }
