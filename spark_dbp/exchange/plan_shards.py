"""Cut the kept samples of an index into new shards. Imports numpy, `loaders.index` and `errors`.

The samples come in the order of the index, so a new shard is a run of them: from a sample of one old shard to
a sample of another. The plan holds these cuts, and what each new shard will have; never a list of samples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError
from spark_dbp.loaders.index import ShardIndex

SAMPLES_A_SHARD = 10_000
# A tar ends with two blocks of zeros, and is filled up to whole records.
BLOCK, RECORD = 512, 10_240
_FEWEST_DIGITS = 5  # as img2dataset names its shards
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Piece:
    """Kept samples of one old shard that go to one new shard: those from `start` to `stop`, in its order."""

    shard: int
    start: int
    stop: int


@dataclass
class ShardPlan:
    """The new shards.

    Attributes
    ----------
    starts : list of (int, int)
        Of each, the old shard of its first sample, and the number of that sample among its kept ones.
    samples, bytes : list of int
        Of each, how many samples it has, and bytes of their members.
    """

    starts: list[tuple[int, int]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, number: int) -> str:
        """Name of a new shard, without ``.tar``."""
        return f"{number:0{max(_FEWEST_DIGITS, len(str(len(self) - 1)))}d}"

    def size(self, number: int) -> int:
        """Bytes of the file of a new shard."""
        return measure_tar(self.bytes[number])

    def list_pieces(self, number: int, kept: npt.NDArray[np.int64]) -> list[Piece]:
        """What a new shard is made of, given the kept samples of each old one."""
        shard, start = self.starts[number]
        left, pieces = self.samples[number], []
        while left:
            stop = min(int(kept[shard]), start + left)
            if stop > start:
                pieces.append(Piece(shard, start, stop))
                left -= stop - start
            shard, start = shard + 1, 0
        return pieces


def measure_tar(n_bytes: int) -> int:
    """Bytes of a tar whose members have `n_bytes`.

    Examples
    --------
    >>> measure_tar(1024), measure_tar(9216), measure_tar(9728)
    (10240, 10240, 20480)
    """
    return -(-(n_bytes + 2 * BLOCK) // RECORD) * RECORD


def parse_size(text: str) -> int:
    """Bytes, from a number with or without a unit: kB, MB, GB are powers of 1000; KiB, MiB, GiB of 1024.

    Raises
    ------
    ConfigError

    Examples
    --------
    >>> parse_size("500MB"), parse_size("1.5 GiB"), parse_size("20480")
    (500000000, 1610612736, 20480)
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].lower()]) if found else 0
    if found is None or (found[3] and not found[2]) or size < RECORD:
        raise ConfigError(
            f"--size {text!r} is no size of a shard",
            mend=f"write bytes, {RECORD} or more, or a number with a unit: 500MB, 1GiB",
        )
    return size


def plan_shards(index: ShardIndex, *, samples: int | None = None, size: int | None = None) -> ShardPlan:
    """Cut the kept samples of an index into shards.

    Parameters
    ----------
    index : ShardIndex
        The places of samples are read from it in a stream, those of one shard at a time.
    samples : int, optional
        Samples of a new shard.
    size : int, optional
        Most bytes of its file. A sample that is larger gets a shard of its own.

    Returns
    -------
    ShardPlan
        A new shard begins also between two neighbours of the same name, which readers would take for one
        sample.
    """
    cutter = _Cutter(samples, size)
    for shard in np.flatnonzero(index.kept).tolist():
        rows = index.read_columns(shard, ["sample", "start", "stop"])
        sizes = rows.column("stop").to_numpy() - rows.column("start").to_numpy()
        cutter.add(shard, sizes, rows.column("sample").combine_chunks())
    return cutter.finish()


class _Cutter:
    """Takes the kept samples of one shard after the other."""

    def __init__(self, samples: int | None, size: int | None) -> None:
        self._samples = samples
        # What leaves room for the end of the tar.
        self._room = None if size is None else size // RECORD * RECORD - 2 * BLOCK
        self._plan = ShardPlan()
        self._n = self._bytes = 0
        self._last: str | None = None

    def add(self, shard: int, sizes: npt.NDArray[np.int64], names: object) -> None:
        """Take the samples of a shard: their bytes, and a pyarrow array of their names."""
        totals = np.concatenate([[0], np.cumsum(sizes)])
        forced = [*self._find_repeated(names), len(sizes)]
        at = 0
        while at < len(sizes):
            if at == forced[0]:
                forced.pop(0)
                self._close()
            stop = min(self._find_full(at, totals), forced[0])
            if stop == at:
                self._close()
                continue
            if not self._n:
                self._plan.starts.append((shard, at))
            self._n += stop - at
            self._bytes += int(totals[stop] - totals[at])
            at = stop

    def _find_full(self, at: int, totals: npt.NDArray[np.int64]) -> int:
        """The first sample, from `at` on, that has no room any more."""
        if self._samples is not None:
            return min(len(totals) - 1, at + self._samples - self._n)
        assert self._room is not None
        fits = int(np.searchsorted(totals, totals[at] + self._room - self._bytes, side="right")) - 1
        return max(fits, at if self._n else at + 1)

    def _find_repeated(self, names: object) -> list[int]:
        """Samples that are named as the one before them."""
        import pyarrow.compute as pc

        same = pc.equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)  # type: ignore[index]
        found = (np.flatnonzero(same) + 1).tolist()
        if self._last == names[0].as_py():  # type: ignore[index]
            found.insert(0, 0)
        self._last = names[-1].as_py()  # type: ignore[index]
        return found

    def _close(self) -> None:
        if self._n:
            self._plan.samples.append(self._n)
            self._plan.bytes.append(self._bytes)
            self._n = self._bytes = 0

    def finish(self) -> ShardPlan:
        """The plan, when all samples were taken."""
        self._close()
        return self._plan
