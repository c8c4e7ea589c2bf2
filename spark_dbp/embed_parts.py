"""Embed the items of the input part by part: a Spark job for each part, marked when it is finished.

Imports `job`, `stages.embed`, `engine`, `io`, `lake` and `encoders`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import DIMENSION, KEY, PROBLEM, SHARD
from spark_dbp.config_embed import EmbedConfig
from spark_dbp.encoders import EncoderSettings
from spark_dbp.engine.compat import collect_rows, column, count_cores
from spark_dbp.engine.mapped_rows import MappedRows, write_rows
from spark_dbp.engine.part_jobs import MOST_AT_ONCE, run_parts
from spark_dbp.engine.table_writer import read_frame
from spark_dbp.errors import InputError
from spark_dbp.io.pieces import Pieces
from spark_dbp.job import Job
from spark_dbp.kernels.samples import count_samples
from spark_dbp.lake.parts import FinishedPart, PartStore, Piece
from spark_dbp.lake.progress import name_pass, report_rounds
from spark_dbp.stages import embed
from spark_dbp.stages.ingest import to_sample_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")

# Fewest and most rows of a part; and how many parts each core gets, where there are rows enough.
_FEWEST_ROWS, _MOST_ROWS, _PARTS_A_CORE = 512, 16_384, 8
# Fewest images of a part on CPUs, which take seconds for as many. On a GPU, a process may hand it to another
# one, which loads the model anew, at the end of each part.
_FEWEST_IMAGES = 64
# Most parts, so that the driver keeps up with them.
_MOST_PARTS = 4096
_EXAMPLES = 5


@dataclass(frozen=True)
class EmbedTask:
    """What a step embeds, and how.

    Attributes
    ----------
    section : EmbedConfig
    pieces : Pieces
        How the rows of the input are told apart.
    settings : EncoderSettings
    carried : dict of str to str
        Columns of the input that travel, and their names in the table of vectors.
    n_rows : int
        Rows that have a key.
    identity : mapping
        What makes the vectors of the encoder what they are.
    by_spark : bool
        Whether Spark reads the shards, because workers do not reach them.
    """

    section: EmbedConfig
    pieces: Pieces
    settings: EncoderSettings
    carried: dict[str, str]
    n_rows: int
    identity: Mapping[str, Any]
    by_spark: bool

    @property
    def what(self) -> str:
        """What is being done, for messages."""
        return f"embed {self.section.name}"


def choose_part_rows(n_rows: int, n_cores: int, kind: str, device: str) -> int:
    """Rows of a part, where `n_rows` are to be embedded.

    Examples
    --------
    >>> choose_part_rows(1_000, 16, "images", "cpu"), choose_part_rows(1_000, 16, "images", "cuda")
    (64, 512)
    >>> choose_part_rows(200_000, 16, "texts", "cpu"), choose_part_rows(10**9, 16, "texts", "cpu")
    (1563, 244141)
    """
    fewest = _FEWEST_IMAGES if kind == "images" and device == "cpu" else _FEWEST_ROWS
    wanted = -(-n_rows // (n_cores * _PARTS_A_CORE))  # rounded up: one part too many keeps the others waiting
    return max(-(-n_rows // _MOST_PARTS), min(_MOST_ROWS, max(fewest, wanted)))


def embed_parts(
    job: Job,
    task: EmbedTask,
    store: PartStore,
    finished: Sequence[FinishedPart],
    parts: Sequence[list[Piece]],
    n_known: int,
    read: Callable[[list[Piece]], DataFrame],
) -> list[FinishedPart]:
    """Embed all parts that are left, and see after each whether too many items are bad.

    Parameters
    ----------
    job : Job
    task : EmbedTask
    store : PartStore
    finished : sequence of FinishedPart
        Those of an earlier attempt.
    parts : sequence of list of Piece
        Those that are left.
    n_known : int
        Rows that are embedded already.
    read : callable
        Reads the rows of a part.

    Returns
    -------
    list of FinishedPart
        All of them.

    Raises
    ------
    InputError
        When items are bad, or more of them than may be dropped. What is embedded is kept for the next run.
    """
    finished = list(finished)
    problems = Counter[str]()
    for part in finished:
        problems.update(count_problems(part))
        _check_problems(job, task, problems, part)
    notes = name_pass(job.directory.progress) if job.engine.name == "arrow" else None
    n_parts, n_done = len(finished) + len(parts), len(finished)
    if notes is None:  # workers cannot say how far they are
        report_rounds("parts", n_done, n_parts)
    job.directory.rows_to_pass = task.n_rows - n_known

    def work(pieces: list[Piece]) -> FinishedPart:
        return _embed_part(job, task, store, read(pieces), pieces, notes)

    # Where Spark writes, a part is counted by a second job, which waits for the parts that came before it.
    at_once = MOST_AT_ONCE if job.engine.name == "arrow" else count_cores(job.spark) + 2
    for _, part in run_parts(job.spark, parts, work, at_once):
        finished.append(part)
        problems.update(count_problems(part))
        _check_problems(job, task, problems, part)
        n_done += 1
        if notes is None:
            report_rounds("parts", n_done, n_parts)
    return finished


def _embed_part(
    job: Job, task: EmbedTask, store: PartStore, rows: DataFrame, pieces: list[Piece], notes: str | None
) -> FinishedPart:
    from pyspark.sql import functions as F

    path = store.new_directory()
    planned = _plan_part(job, task, rows, notes)
    written = write_rows(planned if job.engine.name == "arrow" else planned.to_frame(), path, count_samples)
    counts = written.totals
    if not counts:  # Spark wrote, which does not tell
        rows = read_frame(job.spark, path, planned.schema)
        for problem, dimension, n in collect_rows(rows.groupBy(PROBLEM, DIMENSION).agg(F.count(F.lit(1)))):
            counts["rows"] += int(n)
            counts[f"dimension {dimension}" if problem is None else f"problem {problem}"] += int(n)
    part = FinishedPart(path, pieces, {"rows": 0, **counts})
    store.mark(part)
    return part


def _plan_part(job: Job, task: EmbedTask, rows: DataFrame, notes: str | None) -> MappedRows:
    key, carried = to_sample_columns(rows, str(job.config.input.key), list(task.carried))
    some = rows.where(key.isNotNull()).coalesce(1)
    section = task.section
    if task.by_spark:
        some, items = embed.read_members_by_spark(some)
    else:
        items = embed.find_items(some, section.item_column, section.kind, section.item_setting)
    further = {SHARD: task.pieces.shard.cast("string")}
    further |= {task.carried[name]: value for name, value in carried.items()}
    return embed.plan_embedding(
        some, key, items, task.settings, identity=task.identity, further=further, notes=notes
    )


def count_problems(part: FinishedPart) -> dict[str, int]:
    """Items of a part that are bad, by what is wrong with them."""
    return {name[8:]: n for name, n in part.counts.items() if name.startswith("problem ")}


def _check_problems(job: Job, task: EmbedTask, problems: Counter[str], part: FinishedPart) -> None:
    """Refuse bad items, or more of them than may be dropped."""
    section, n_bad = task.section, sum(problems.values())
    most = 0 if section.on_bad_items == "fail" else int(section.max_bad_share * task.n_rows)
    if n_bad <= most:
        return
    frame = read_frame(job.spark, part.path).where(f"{PROBLEM} IS NOT NULL")
    rows = collect_rows(
        frame.select(column(KEY).cast("string"), SHARD, PROBLEM).orderBy(KEY).limit(_EXAMPLES)
    )
    shown = "\n".join(f"  - key {key!r} in {shard}: {problem}" for key, shard, problem in rows)
    counted = "; ".join(f"{reason}: {n:,}" for reason, n in sorted(problems.items()))
    if section.on_bad_items == "fail":
        raise InputError(
            f"{task.what}: {section.kind} that cannot be embedded ({counted} so far), such as\n{shown}",
            mend="mend them, leave them out with input.filter, or set embed.on_bad_items: drop, which lists "
            f"them in the table {section.rejected_table}; what is embedded already is kept",
        )
    raise InputError(
        f"{task.what}: {n_bad:,} of {task.n_rows:,} {section.kind} cannot be embedded ({counted}), more than "
        f"embed.max_bad_share {section.max_bad_share:g} allows; such as\n{shown}",
        mend="see what is wrong with them, or raise embed.max_bad_share; what is embedded already is kept",
    )
