"""The eps of semantic deduplication that leaves so many samples, from the similarities that a run found.

Imports numpy, `columns`, `errors`, `pairwise`, `lake`, `run_clusters` and `runs`. No Spark.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import SIMILARITY
from spark_dbp.errors import InputError
from spark_dbp.explore.run_clusters import check_columns, translate_damage
from spark_dbp.kernels.pairwise import find_threshold
from spark_dbp.lake import parquet_files

if TYPE_CHECKING:
    from spark_dbp.runs import Run

Floats = npt.NDArray[np.float64]

_BATCH_ROWS, _BATCH_BYTES = 2**20, 32 << 20
# So many similarities are held at a time. Among more, a pass counts them in this many ranges.
_MOST_HELD, _RANGES = 2**20, 2**16
# An eps has at most so many digits after the point: more than tell two floats below 1 apart.
_MOST_DIGITS = 20


def find_eps(run: Run, n_rows: int) -> dict[str, Any]:
    """The eps at which semantic deduplication leaves `n_rows` samples.

    Parameters
    ----------
    run : Run
        With ``dedup.semantic``, ``groups: earlier``.
    n_rows : int
        How many samples semantic deduplication is to leave: those that the score filter or pruning then gets.

    Returns
    -------
    dict
        ``eps``, with as few digits as will do; ``removed``, ``share``, ``left``: samples that it removes,
        their share, and those that it leaves; ``applied``: whether it is the eps of the run; ``hint``. Where
        samples of equal similarity go together, ``left`` may be more than `n_rows`; the hint says so.

    Raises
    ------
    InputError
        When the run does not know: it had no semantic deduplication, or of connected groups; it compared too
        few pairs for so few samples to be left; or so many cannot be left, because identical vectors are
        duplicates for every eps. The message names the limit.
    DamagedRunError
        When the table of pairs cannot be read.

    Notes
    -----
    The answer is exact. A sample is a duplicate when its similarity to an earlier one is above ``1 - eps``,
    whether or not that one is left. So the similarity to the most similar earlier sample, which the table
    ``semantic_pairs`` has for every eps up to the largest that was counted, decides for each eps at once. The
    table is read in batches, two to five times; about 8 MB are held.

    Examples
    --------
    >>> find_eps(open_run("run"), 50_000)["eps"]  # doctest: +SKIP
    """
    known = run.semantic_sweep()  # refuses a run without
    info = run.document["stages"]["semantic_dedup"]["info"]
    if info.get("groups", "earlier") != "earlier":
        raise InputError(
            f"{run.path}: what another eps removes is not known of dedup.semantic.groups: {info['groups']}",
            mend="run the job with groups: earlier to choose eps, or with the eps to know about",
        )
    compared = _count_compared(run)
    largest = max(row["eps"] for row in known)
    n_pairs = next(int(row["removed"]) for row in known if row["eps"] == largest)
    least = compared - n_pairs
    if n_rows < least:
        larger = f"[{info['eps']:g}, {min(0.9, round(3 * largest, 10)):g}]"
        raise InputError(
            f"{run.path}: the largest eps that was counted, {largest:g}, leaves {least:,} of {compared:,} "
            f"samples, so the eps that leaves {n_rows:,} is not known",
            mend=f"ask for {least:,} or more; or run the job with a larger eps after the first, such as "
            f"dedup.semantic.eps: {larger}, where the first is applied and the others are counted",
        )
    if n_rows > compared:
        raise InputError(
            f"{run.path}: semantic deduplication got {compared:,} samples, so it cannot leave {n_rows:,}",
            mend=f"ask for at most {compared:,}",
        )
    eps, removed, next_removed = _search(_Similarities(run), compared - n_rows, n_pairs, largest)
    if eps is None:
        raise InputError(
            f"{run.path}: {next_removed:,} samples have the vector of an earlier one, and every eps removes "
            f"these, so no eps leaves {n_rows:,} of {compared:,}",
            mend=f"ask for at most {compared - next_removed:,}; or leave dedup.semantic out",
        )
    hint = None
    if removed < compared - n_rows:
        hint = (
            f"no eps leaves exactly {n_rows:,}, because samples of equal similarity go together; a little "
            f"larger one leaves {compared - next_removed:,}"
        )
    return {
        "eps": eps,
        "removed": removed,
        "share": removed / compared,
        "left": compared - removed,
        "applied": eps == info["eps"],
        "hint": hint,
    }


def list_eps(run: Run) -> list[dict[str, Any]]:
    """`Run.semantic_sweep` with the samples that each eps leaves, as ``left``.

    Raises
    ------
    InputError
        When the run had no semantic deduplication.
    """
    rows = run.semantic_sweep()
    compared = _count_compared(run)
    return [{**row, "left": compared - row["removed"]} for row in rows]


def _count_compared(run: Run) -> int:
    """How many samples semantic deduplication looked at."""
    stages = run.document["stages"].values()
    return next(
        step["rows"]["semantic_assignments"] for step in stages if "semantic_assignments" in step["rows"]
    )


class _Similarities:
    """The similarity of every sample to its most similar earlier one, where the run compared them."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __iter__(self) -> Iterator[Floats]:
        """All of them, a batch at a time, in any order."""
        for path in self.run.list_files("semantic_pairs"):
            with translate_damage(self.run, "semantic_pairs", path):
                for batch in parquet_files.iter_parquet(path, [SIMILARITY], _BATCH_ROWS, _BATCH_BYTES):
                    check_columns(batch.schema.names, [SIMILARITY])
                    yield batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)

    def select(self, rank: int) -> float:
        """The value of this rank, 1 for the largest; all are above 0."""
        # Positive floats are in the order of their bits, so ranges of whole numbers cut them finely enough.
        low, high = 0, int(np.float64(1.0).view(np.int64)) + 1
        n_inside = None
        while n_inside is None or n_inside > _MOST_HELD:
            width = -(-(high - low) // _RANGES)
            counts = np.zeros(_RANGES, dtype=np.int64)
            for values in self:
                bits = values.view(np.int64)
                inside = bits[(bits >= low) & (bits < high)]
                counts += np.bincount((inside - low) // width, minlength=_RANGES)
            from_top = np.cumsum(counts[::-1])
            at = int(np.searchsorted(from_top, rank))  # the range of that rank, from the top
            rank -= int(from_top[at] - counts[_RANGES - 1 - at])
            low += (_RANGES - 1 - at) * width
            high, n_inside = low + width, int(counts[_RANGES - 1 - at])
            if width == 1:  # many that are equal
                return float(np.int64(low).view(np.float64))
        held = [bits[(bits >= low) & (bits < high)] for bits in (values.view(np.int64) for values in self)]
        found = np.sort(np.concatenate(held))[-rank]
        return float(np.int64(found).view(np.float64))

    def look_around(self, value: float) -> tuple[float | None, int, int]:
        """The smallest that is above `value`, how many are, and how many are equal."""
        above, n_above, n_equal = np.inf, 0, 0
        for values in self:
            larger = values[values > value]
            n_above += len(larger)
            n_equal += int((values == value).sum())
            above = min(above, float(larger.min(initial=np.inf)))
        return (None if np.isinf(above) else above), n_above, n_equal


def _search(found: _Similarities, n: int, n_pairs: int, largest: float) -> tuple[float | None, int, int]:
    """The eps that removes `n`, or most below `n`; how many; and how many the next eps removes.

    The eps is None where every eps removes more than `n`.
    """
    if n == n_pairs:
        low = find_threshold(largest)
        high, removed, _ = found.look_around(low)
        after = removed
    else:
        low = found.select(n + 1)  # the first that must stay
        high, removed, n_equal = found.look_around(low)
        after = removed + n_equal
    eps = _shorten(low, 1.0 if high is None else high)
    if eps is None and removed:  # two similarities that no eps tells apart
        return (*_search(found, removed - 1, n_pairs, largest)[:2], after)
    return eps, removed, after


def _shorten(low: float, high: float) -> float | None:
    """The eps of fewest digits whose threshold lies from `low` to below `high`. None where there is none.

    Examples
    --------
    >>> _shorten(0.9512, 0.9534), _shorten(0.95, 0.96), _shorten(1.0, 1.0)
    (0.048, 0.05, None)
    """
    most = 1 - Decimal(low)
    for digits in range(1, _MOST_DIGITS):
        eps = float(most.quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR))
        for value in (eps, float(Decimal(repr(eps)) + Decimal(1).scaleb(-digits))):
            if 0 < value < 1 and low <= find_threshold(value) < high:
                return value
    return None
