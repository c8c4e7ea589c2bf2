"""How samples of shards are listed, and how vectors are made of them part by part.

Imports `job`, the stages, `engine`, `io`, `lake` and `encoders`; pyspark inside functions.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__
from spark_dbp.build_samples import check_feasible
from spark_dbp.columns import (
    DIMENSION,
    KEY,
    PROBLEM,
    REASON,
    SHARD,
    VECTOR,
    name_carried,
)
from spark_dbp.config_embed import EmbedConfig
from spark_dbp.embed_parts import EmbedTask, choose_part_rows, count_problems, embed_parts
from spark_dbp.encoders import EncoderSettings
from spark_dbp.engine.arrow import reads_alike
from spark_dbp.engine.compat import (
    collect_rows,
    column,
    count_cores,
    open_reader,
    read_setting,
    to_arrow_schema,
)
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.engine.session import READ_SETTINGS
from spark_dbp.engine.table_writer import read_frame
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.io.pieces import find_pieces
from spark_dbp.io.sources import apply_filter
from spark_dbp.job import Job, without_place
from spark_dbp.kernels.samples import NULL_KEY
from spark_dbp.lake import parquet_files, paths
from spark_dbp.lake.marks import FinishedStep, hash_value
from spark_dbp.lake.parts import FinishedPart, InputFile, PartStore, Piece, plan_parts
from spark_dbp.secrets import redact
from spark_dbp.stages import embed
from spark_dbp.stages.check_samples import refuse_duplicate_keys
from spark_dbp.stages.ingest import ingest, to_sample_columns
from spark_dbp.stages.list_shards import find_json_fields, plan_shard_samples

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

log = logging.getLogger("spark_dbp")

# Columns of a table of vectors that no carried column may be named as.
_RESERVED = {KEY, VECTOR, DIMENSION, PROBLEM, SHARD, embed.ITEM}
_KNOWN = "known_key"


def build_shard_samples(job: Job) -> None:
    """List the samples of the shards, with their texts and json."""
    planned = plan_shard_samples(
        job.spark,
        job.shards,
        by_spark=not job.workers_read(job.shards[0].path),
        progress=job.directory.progress if job.engine.name == "arrow" else None,
    )
    written = job.write_table("shard_samples", planned)
    if written.rows == 0:
        raise InputError(f"{job.source_name}: there are no samples in the shards", mend="check the shards")
    kinds = find_json_fields(written.frame)
    if "" in kinds:
        log.warning("  some .json members are no JSON objects: the fields of these samples are null")
    job.note(json_fields=kinds)
    log.info("  %s samples in %s shards", f"{written.rows:,}", f"{len(job.shards):,}")


def build_embeddings(job: Job, name: str, carried: Sequence[str]) -> None:
    """Make the vectors of a section of ``embed``.

    Parameters
    ----------
    job : Job
    name : str
        Of the section.
    carried : sequence of str
        Columns of the input that later steps need.
    """
    section = job.find_embed(name)
    checked = check_keys(job)
    pieces = find_pieces(job.source, str(job.config.input.key), job.shards)
    task = EmbedTask(
        section,
        pieces,
        EncoderSettings.from_config(section),
        name_columns(carried),
        checked["rows"],
        job.identify_encoder(name),
        # Asked once, before the parts, which ask at the same time.
        section.has_shards and not job.workers_read(job.shards[0].path),
    )
    earlier = _find_earlier(job, task)
    reused = _reuse(job, task, earlier) if earlier is not None else None
    store = PartStore(job.directory.at(f"tables/{section.table}_parts"), _describe_parts(job, task))
    if job.directory.is_fresh:
        store.delete()
    finished = store.list_finished(pieces.files)
    if finished:
        log.info("  %s parts of an earlier attempt are taken over", f"{len(finished):,}")
    done = [piece for part in finished for piece in part.pieces]
    if reused is not None and reused.is_complete:
        done += [Piece(file, 0, file.rows) for file in reused.files]
    n_left = sum(file.rows for file in pieces.files) - sum(piece.stop - piece.start for piece in done)
    n_known = sum(part.counts["rows"] for part in finished) + (reused.n_rows if reused is not None else 0)
    probed: dict[str, Any] = {}
    parts: list[list[Piece]] = []
    if n_left:
        probed = embed.probe(job.spark, task.settings, task.identity)
        log.info(
            "  %s: %s dimensions, %s on %s", section.encoder_name, f"{probed['dimension']:,}",
            probed["dtype"], probed["device"],
        )  # fmt: skip
        _check_dimension(job, section, probed["dimension"])
        n_all = sum(file.rows for file in pieces.files)
        a_unit = task.n_rows / n_all if pieces.file is None else 1.0  # a view's are buckets of rows
        target = choose_part_rows(
            round(n_left * a_unit), count_cores(job.spark), section.kind, probed["device"]
        )
        target = max(1, int(target / a_unit))
        parts = plan_parts(pieces.files, done, target, most_ranges=pieces.most_ranges)

    def read(part: list[Piece]) -> DataFrame:
        rows = pieces.read(part)
        if reused is None or reused.is_complete:
            return rows
        return reused.leave_out(rows, to_sample_columns(rows, str(job.config.input.key))[0])

    finished = embed_parts(job, task, store, finished, parts, n_known, read)
    _write_tables(job, task, finished, reused, probed)
    job.do_when_marked(store.delete)  # not before: a run that is killed in between would lose all


def name_columns(names: Sequence[str]) -> dict[str, str]:
    """Names, in a table of vectors, of columns of the input that travel: their own where these are plain.

    Examples
    --------
    >>> name_columns(["txt", "lower(url)", "Vector", "TXT"])
    {'txt': 'txt', 'lower(url)': 'column_1', 'Vector': 'column_2', 'TXT': 'column_3'}
    """
    found: dict[str, str] = {}
    taken = set(_RESERVED)
    for number, name in enumerate(names):
        is_plain = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name.lower() not in taken
        found[name] = name if is_plain else name_carried(number)
        taken.add(found[name].lower())
    return found


def check_keys(job: Job) -> dict[str, int]:
    """Refuse keys that are null or repeated before anything is embedded, once in a run.

    Returns
    -------
    dict of str to int
        ``rows`` that have a key, and ``nulls``; both after ``input.filter``.

    Raises
    ------
    InputError
    """
    from pyspark.sql import functions as F

    if job.checked_keys is None:
        rows = job.source.read_rows()
        keys = rows.select(to_sample_columns(rows, str(job.config.input.key))[0].alias(KEY))
        n_all, n_keys = collect_rows(keys.agg(F.count(F.lit(1)), F.count(KEY)))[0]
        n_nulls = int(n_all) - int(n_keys)
        if n_nulls and job.config.input.on_bad_rows == "fail":
            raise InputError(
                f"the input has rows that cannot be used\n  - {NULL_KEY}: {n_nulls:,} rows",
                mend="mend them, leave them out with input.filter, or set input.on_bad_rows: drop",
            )
        if not n_keys:
            raise InputError("the input has no rows", mend=f"check {job.source.name} and input.filter")
        refuse_duplicate_keys(keys.where(F.col(KEY).isNotNull()))
        check_feasible(job.config, int(n_keys))
        job.checked_keys = {"rows": int(n_keys), "nulls": n_nulls}
    return job.checked_keys


def _check_dimension(job: Job, section: EmbedConfig, dimension: int) -> None:
    """Refuse at once two embeddings of a score that cannot be compared."""
    score = job.config.score_filter.clip_score if job.config.score_filter is not None else None
    names = (score.image, score.text) if score is not None else ()
    if section.name not in names:
        return
    for name in set(names) - {section.name}:
        other = next((one for one in job.config.embed if one.name == name), None)
        try:
            known = job.info(other.table)["dimension"] if other is not None else _peek_dimension(job)
        except KeyError:
            continue  # it comes later
        if known is not None and known != dimension:
            raise InputError(
                f"score_filter.clip_score: the vectors of {section.name!r} have {dimension:,} dimensions, "
                f"those of {name!r} {known:,}",
                mend="name the image and the text tower of the same model as encoders",
            )


def _peek_dimension(job: Job) -> int | None:
    """Dimensions of the first embedding of the input."""
    given = job.config.input
    some = ingest(
        job.source.read_rows().limit(1),
        key=str(given.key),
        embedding=str(given.embedding),
        embedding_binary=given.embedding_binary,
    )
    found = [row[DIMENSION] for row in some.select(DIMENSION).collect()]
    return int(found[0]) if found and found[0] is not None else None


def _describe_parts(job: Job, task: EmbedTask) -> dict[str, Any]:
    """All that the rows of a part depend on, but for the files that they come from."""
    frame = job.source.frame
    types = {name: frame.schema[name].dataType.simpleString() for name in task.carried}
    return {
        **_describe_vectors(job, task),
        "carried": types,
        "filter": job.config.input.filter,
    }


def _describe_vectors(job: Job, task: EmbedTask) -> dict[str, Any]:
    """All that the vector of a key depends on, but for the file that the key comes from."""
    section, key = task.section, str(job.config.input.key)
    return {
        "version": __version__,
        "encoder": without_place(task.identity),
        "items": section.item_column or "in shards",
        "kind": section.kind,
        "max_pixels": section.max_pixels,
        "key": [key, job.source.frame.schema[key].dataType.simpleString()],
        "session": {name: read_setting(job.spark, name) for name in READ_SETTINGS},
    }


# What an earlier run has embedded.


@dataclass(frozen=True)
class _Reused:
    """Vectors of an earlier run, for rows of files that have not changed since, which its filter let through.

    Other rows are not among them, even where they have a key that was embedded then: it may have been that of
    another row. `is_complete` says whether these are all rows of the files that are wanted now.
    """

    files: list[InputFile]
    vectors: DataFrame
    rejected: DataFrame
    n_vectors: int
    n_rejected: int
    dimension: int
    is_complete: bool

    @property
    def n_rows(self) -> int:
        return self.n_vectors + self.n_rejected

    def leave_out(self, rows: DataFrame, key: Column) -> DataFrame:
        """Rows of the input that are not among these."""
        keys = self.vectors.select(KEY).union(self.rejected.select(KEY)).withColumnRenamed(KEY, _KNOWN)
        return rows.join(keys, key == column(_KNOWN), "left_anti")


def _find_earlier(job: Job, task: EmbedTask) -> FinishedStep | None:
    """The step as an earlier run finished it, where its vectors are those that would be made now."""
    section = task.section
    if job.directory.is_fresh or task.pieces.file is None:
        return None
    step = job.directory.read_earlier(f"embed_{section.name}")
    if step is None or step.info.get("vectors_of") != hash_value(_describe_vectors(job, task)):
        return None
    return None if job.directory.describe_damage(step) else step


def _reuse(job: Job, task: EmbedTask, step: FinishedStep) -> _Reused | None:
    """What is taken over of a step that an earlier run finished."""
    section, tables = task.section, {name: job.directory.at(path) for name, path in step.tables.items()}
    rows_of_files = parquet_files.read_parquet(tables[f"{section.table}_files"]).to_pylist()
    known = {InputFile(**row) for row in rows_of_files}
    unchanged = [file for file in task.pieces.files if file in known]
    if not unchanged:
        return None
    all_rows = task.pieces.read([Piece(file, 0, file.rows) for file in unchanged])
    key, carried = to_sample_columns(all_rows, str(job.config.input.key), list(task.carried))
    all_rows = all_rows.where(key.isNotNull())
    try:
        rows = apply_filter(all_rows, step.info["filter"])
    except ConfigError as error:  # it named what the input no longer has
        log.info("  no vector of an earlier run is taken over: %s", error.what)
        return None
    named = [value.alias(task.carried[name]) for name, value in carried.items()]
    wanted = rows.select(key.alias(KEY), *named)
    vectors = read_frame(job.spark, tables[section.table]).select(KEY, VECTOR).join(wanted, KEY)
    rejected = read_frame(job.spark, tables[section.rejected_table])
    rejected = rejected.join(wanted.select(KEY), KEY, "left_semi")
    n_wanted, n_vectors, n_rejected = all_rows.count(), vectors.count(), rejected.count()
    log.info(
        "  %s vectors of an earlier run are taken over: %s of %s files have not changed",
        f"{n_vectors:,}", f"{len(unchanged):,}", f"{len(task.pieces.files):,}",
    )  # fmt: skip
    is_complete = n_wanted == n_vectors + n_rejected
    dimension = step.info["dimension"]
    return _Reused(unchanged, vectors, rejected, n_vectors, n_rejected, dimension, is_complete)


def _write_tables(
    job: Job,
    task: EmbedTask,
    parts: list[FinishedPart],
    reused: _Reused | None,
    probed: Mapping[str, Any],
) -> None:
    from pyspark.sql import functions as F

    section, carried = task.section, task.carried
    counts = Counter[str]()
    for part in parts:
        counts.update(part.counts)
    good: list[DataFrame] = [reused.vectors] if reused is not None else []
    bad: list[DataFrame] = [reused.rejected] if reused is not None else []
    filled = [part.path for part in parts if part.counts["rows"]]
    if filled:
        rows = open_reader(job.spark).parquet(*map(paths.to_spark_source, filled))
        good.append(rows.where(F.col(PROBLEM).isNull()).select(KEY, VECTOR, *map(column, carried.values())))
        found = rows.where(F.col(PROBLEM).isNotNull())
        bad.append(found.select(KEY, SHARD, F.col(PROBLEM).alias(REASON)))
    vectors, rejected = (reduce(lambda a, b: a.unionByName(b), frames) for frames in (good, bad))
    problems = Counter(count_problems(FinishedPart("", [], dict(counts))))
    if reused is not None and reused.n_rejected:
        problems.update(
            {row[REASON]: row["count"] for row in reused.rejected.groupBy(REASON).count().collect()}
        )
    n_rejected = sum(problems.values())
    if n_rejected == task.n_rows:
        raise InputError(
            f"{task.what}: none of the {task.n_rows:,} {section.kind} can be embedded",
            mend=f"see {section.item_setting}",
        )
    job.write_table(
        section.table,
        MappedRows(vectors, lambda batches: batches, vectors.schema),
        expected_rows=task.n_rows - n_rejected,
    )
    if n_rejected or not reads_alike(rejected.schema[KEY].dataType):
        job.write_table(section.rejected_table, rejected, expected_rows=n_rejected)
    else:  # most often: three jobs of Spark less
        job.write_small_table(section.rejected_table, to_arrow_schema(rejected.schema).empty_table())
    job.write_small_table(f"{section.table}_files", _make_files_table(task.pieces.files))
    dimensions = {int(name[10:]) for name in counts if name.startswith("dimension ")}
    dimensions |= {reused.dimension} if reused is not None and reused.n_vectors else set()
    if len(dimensions) != 1:
        raise SparkDbpError(
            f"{task.what}: the encoder returned vectors of {sorted(dimensions)} dimensions",
            mend="an encoder must return vectors of one dimension",
        )
    job.note(
        encoder=redact(dict(task.identity)),  # `options` may hold a token
        encoded_on={name: probed[name] for name in ("device", "dtype") if name in probed},
        dimension=dimensions.pop(),
        rejected=dict(sorted(problems.items())),
        null_keys=check_keys(job)["nulls"],
        filtered=job.source.snapshot.rows - task.n_rows - check_keys(job)["nulls"],
        carried=carried,
        filter=job.config.input.filter,
        vectors_of=hash_value(_describe_vectors(job, task)),
    )
    job.source.check_unchanged()


def _make_files_table(files: Sequence[InputFile]) -> Any:
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), *((name, pa.int64()) for name in ("size", "changed", "rows"))])
    return pa.Table.from_pylist([asdict(file) for file in files], schema)
