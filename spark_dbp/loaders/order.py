"""The order of the kept samples of an epoch, and who gets which. Imports numpy and `errors`.

Words of this module:

position    of a sample in the order of the epoch, from 0 to n - 1.
window      so many positions one after the other. Samples change places within a window only.
rank        a training process; there are R of them. They take batches in step.
batch       B samples that one rank takes at once. A *global batch* is those of all ranks: positions that
            follow one another, the first B for rank 0, the next B for rank 1.
tail        what is left behind the last full global batch. It is shared evenly.
worker      a process that makes batches of a rank: worker w of W makes batches w, w + W, w + 2 W. DataLoader
            takes them from the workers in turn, so the order does not depend on W.

Nothing here is as long as the number of samples: shards are permuted, and then each window.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError

Numbers = npt.NDArray[np.int64]

# Samples of a window, usually. A window should span several shards, else what lies together in a shard stays
# together; and all its shards are in use at once, which a cache of shards must hold. 16,384 samples are two
# shards as img2dataset writes them when all is kept, and 16 when a tenth is. The order of a window takes a
# millisecond to make.
SHUFFLE_WINDOW = 16_384

REMAINDERS = ("pad", "drop", "uneven")
_SHARDS, _WINDOWS = 0, 1  # streams of random numbers
_MOST_WINDOWS = 4  # whose permutation is held
_MOST_SEED = 2**64 - 1


def permute(n: int, seed: int, epoch: int, stream: int = 0, number: int = 0) -> Numbers:
    """A permutation that depends on nothing else than its arguments.

    numpy may change how its generators permute; the bits of Philox stay, so these are sorted.

    Examples
    --------
    >>> permute(5, seed=0, epoch=0).tolist(), permute(5, seed=0, epoch=1).tolist()
    ([...], [...])
    """
    bits = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, number, stream], np.uint64)
    )
    return np.argsort(bits.random_raw(n), kind="stable")


class SampleOrder:
    """Which sample is at which position.

    Parameters
    ----------
    kept : ndarray of shape (n_shards,), int64
        Kept samples of each shard.
    seed, epoch : int
    shuffle : bool
        If False, samples come in the order of the shards.
    window : int
        Samples of a window.

    Examples
    --------
    >>> order = SampleOrder(np.array([3, 0, 2]), shuffle=False)
    >>> shards, rows = order.locate(np.arange(5))
    >>> shards.tolist(), rows.tolist()
    ([0, 0, 0, 2, 2], [0, 1, 2, 0, 1])
    """

    def __init__(
        self,
        kept: Numbers,
        *,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        window: int = SHUFFLE_WINDOW,
    ) -> None:
        check_whole("seed", seed, 0, _MOST_SEED)
        check_whole("epoch", epoch, 0, _MOST_SEED)
        check_whole("shuffle_window", window, 1)
        self._shuffle, self._seed, self._epoch = shuffle, seed, epoch
        shards = np.flatnonzero(kept)
        if shuffle:
            shards = shards[permute(len(shards), seed, epoch, _SHARDS)]
        self._shards = shards
        self._cuts = np.concatenate([[0], np.cumsum(kept[shards])]).astype(np.int64)
        self.n = int(self._cuts[-1])
        self._window = min(window, max(1, self.n))
        self._held: dict[int, Numbers] = {}

    def locate(self, positions: Numbers) -> tuple[Numbers, Numbers]:
        """Shard of each position, and number of the sample among the kept ones of that shard.

        Parameters
        ----------
        positions : ndarray of shape (m,), int64

        Returns
        -------
        shards, rows : ndarray of shape (m,), int64
        """
        at = positions
        if self._shuffle:
            at = np.empty_like(positions)
            windows = positions // self._window
            for number in np.unique(windows).tolist():
                chosen = windows == number
                first = number * self._window
                at[chosen] = first + self._permute_window(number)[positions[chosen] - first]
        slots = np.searchsorted(self._cuts, at, side="right") - 1
        return self._shards[slots], at - self._cuts[slots]

    def shards_from(self, position: int, n_samples: int) -> list[int]:
        """Shards that are needed from the window of a position on, for so many samples and to a window's end.

        In the order in which they are first needed, as far as windows tell.
        """
        start = position // self._window * self._window
        stop = min(self.n, -(-(position + n_samples) // self._window) * self._window)
        if start >= stop:
            return []
        first, last = np.searchsorted(self._cuts, [start, stop - 1], side="right") - 1
        return self._shards[first : last + 1].tolist()

    def _permute_window(self, number: int) -> Numbers:
        held = self._held.get(number)
        if held is None:
            size = min(self._window, self.n - number * self._window)
            if len(self._held) >= _MOST_WINDOWS:
                self._held.pop(next(iter(self._held)))
            held = self._held[number] = permute(size, self._seed, self._epoch, _WINDOWS, number)
        return held


@dataclass(frozen=True)
class Rest:
    """What of an epoch is still to be delivered.

    Attributes
    ----------
    position : int
        All positions from here on.
    left : tuple of (int, int)
        Ranges of positions before it; only after a stop in the middle of a batch of several ranks.
    """

    position: int = 0
    left: tuple[tuple[int, int], ...] = ()


class Deal:
    """Who gets which positions.

    Parameters
    ----------
    n : int
        Samples of the epoch.
    batch_size, world_size : int
    remainder : str
        What becomes of the samples that the ranks cannot share evenly, fewer than `world_size`: ``pad`` gives
        each rank one of them, for which the first samples of the epoch come again; ``drop`` leaves them out;
        ``uneven`` gives the first ranks one more.
    drop_last : bool
        Leaves out the whole tail.
    n_equal : int
        Workers of a rank that must have the same number of batches. Then the tail is what is left behind the
        last `n_equal` full global batches, and each worker of each rank has a share of it.
    rest : Rest
        What is dealt, when the first part of the epoch was delivered before.

    Attributes
    ----------
    n_batches : int
        Of the rank that has most.
    n_padded, n_dropped : int
        Samples that come again, and that are left out.

    Examples
    --------
    >>> deal = Deal(10, batch_size=2, world_size=2)
    >>> [deal.positions(1, number).tolist() for number in range(deal.count_batches(1))]
    [[2, 3], [6, 7], [9]]
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        world_size: int = 1,
        *,
        remainder: str = "pad",
        drop_last: bool = False,
        n_equal: int = 1,
        rest: Rest | None = None,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        check_whole("world_size", world_size, 1)
        check_whole("num_workers", n_equal, 1)
        if remainder not in REMAINDERS:
            raise ConfigError(
                f"remainder {remainder!r} is not known", mend=f"give one of {', '.join(REMAINDERS)}"
            )
        if remainder == "uneven" and n_equal > 1:
            raise ConfigError(
                "equal_workers and remainder 'uneven' contradict each other",
                mend="give remainder 'pad' or 'drop'",
            )
        self.n, self.batch_size, self.world_size, self._remainder = n, batch_size, world_size, remainder
        self.rest = rest or Rest()
        ranges = [*self.rest.left, (self.rest.position, n)]
        self._ranges = [(start, stop) for start, stop in ranges if start < stop]
        self._cuts = np.cumsum([0, *(stop - start for start, stop in self._ranges)])
        self._n_rest = int(self._cuts[-1])
        all_ranks = batch_size * world_size
        self._n_full = self._n_rest // (all_ranks * n_equal) * n_equal
        self._tail = self._n_rest - self._n_full * all_ranks
        self._tail_batches = n_equal
        lanes = (
            world_size * n_equal
        )  # shares of the tail: rank 0, 1, ... of its first global batch, then the next
        self._share, self._odd = divmod(self._tail, lanes)
        self.n_padded = self.n_dropped = 0
        if drop_last:
            self.n_dropped, self._share, self._odd = self._tail, 0, 0
        elif remainder == "drop":
            self.n_dropped, self._odd = self._odd, 0
        elif remainder == "pad" and self._odd:
            self.n_padded, self._share, self._odd = lanes - self._odd, self._share + 1, 0
        self.n_batches = self._n_full + sum(self._lane_size(k * world_size) > 0 for k in range(n_equal))

    def count_batches(self, rank: int, worker: int = 0, num_workers: int = 1) -> int:
        """Batches of a rank, or of one of its workers."""
        n_batches = self.n_batches
        if n_batches > self._n_full and not self._size_of(rank, n_batches - 1):
            n_batches -= 1  # of an uneven tail, of fewer samples than ranks
        return len(range(worker, n_batches, num_workers))

    def count_samples(self, rank: int | None = None, worker: int = 0, num_workers: int = 1) -> int:
        """Samples of a rank, or of one of its workers; without a rank of all ranks. Padded ones count too."""
        if rank is None:
            return sum(self.count_samples(each) for each in range(self.world_size))
        full = len(range(worker, self._n_full, num_workers)) * self.batch_size
        first = self._n_full + (worker - self._n_full) % num_workers
        return full + sum(self._size_of(rank, number) for number in range(first, self.n_batches, num_workers))

    def positions(self, rank: int, number: int) -> Numbers:
        """Positions of the samples of a batch of a rank.

        Parameters
        ----------
        rank, number : int
            From 0.

        Returns
        -------
        ndarray of shape (samples of the batch,), int64
        """
        start = self._start_of(rank, number)
        at = np.arange(start, start + self._size_of(rank, number), dtype=np.int64)
        padded = (at[at >= self._n_rest] - self._n_rest) % max(1, self.n)
        at = at[at < self._n_rest]
        if not len(at):
            return padded
        starts = np.array([start for start, _ in self._ranges], np.int64)
        slots = np.searchsorted(self._cuts, at, side="right") - 1
        return np.concatenate([starts[slots] + at - self._cuts[slots], padded])

    def count_in_batch(self, rank: int, number: int) -> int:
        """Samples of a batch of a rank; 0 where it has no such batch."""
        return self._size_of(rank, number) if number < self.n_batches else 0

    def find_batch(self, rank: int, n_samples: int) -> tuple[int, int]:
        """The batch in which a rank is after so many samples, and how many of that batch it has had.

        Raises
        ------
        ConfigError
            When it has not so many.
        """
        number = min(n_samples // self.batch_size, self._n_full)
        inside = n_samples - number * self.batch_size
        while inside and inside >= self.count_in_batch(rank, number):
            if number >= self.n_batches:
                raise ConfigError(
                    f"rank {rank} has {self.count_samples(rank):,} samples, not {n_samples:,}",
                    mend="count the samples of this rank since set_epoch or load_state_dict",
                )
            inside -= self.count_in_batch(rank, number)
            number += 1
        return number, inside

    def find_rest(self, number: int, inside: int = 0) -> Rest:
        """What is left when each rank has had so many batches, and `inside` samples of the next one."""
        if number >= self.n_batches:
            return Rest(self.n)
        after = number + (inside > 0)
        spans = []
        if inside:
            for rank in range(self.world_size):
                start = self._start_of(rank, number)
                spans.append((start + inside, start + self._size_of(rank, number)))
        spans.append((self._start_of(0, after), self._n_rest))
        return self._to_rest(spans)

    def _to_rest(self, spans: Iterable[tuple[int, int]]) -> Rest:
        """From ranges of what is dealt to ranges of positions, those that touch joined."""
        found: list[tuple[int, int]] = []
        for start, stop in spans:
            for (first, last), cut in zip(self._ranges, self._cuts.tolist(), strict=False):
                low = max(first, first + start - cut)
                high = min(last, first + min(stop, self._n_rest) - cut)
                if low < high:
                    if found and found[-1][1] == low:
                        low = found.pop()[0]
                    found.append((low, high))
        if found and found[-1][1] == self.n:
            return Rest(found[-1][0], tuple(found[:-1]))
        return Rest(self.n, tuple(found))

    def _start_of(self, rank: int, number: int) -> int:
        if number < self._n_full:
            return (number * self.world_size + rank) * self.batch_size
        lane = (number - self._n_full) * self.world_size + rank
        return self._n_rest - self._tail + lane * self._share + min(lane, self._odd)

    def _size_of(self, rank: int, number: int) -> int:
        if number < self._n_full:
            return self.batch_size
        return self._lane_size((number - self._n_full) * self.world_size + rank)

    def _lane_size(self, lane: int) -> int:
        return self._share + (lane < self._odd)


def check_share(
    deal: Deal, rank: int | None, worker: int | None, num_workers: int | None
) -> tuple[int | None, int, int]:
    """Rank, worker and number of workers as `Deal` counts them, where some of them may be missing.

    Examples
    --------
    >>> check_share(Deal(10, 2), 0, None, None)
    (0, 0, 1)
    """
    if rank is None and worker is None:
        return None, 0, 1
    if rank is None or (worker is None) != (num_workers is None):
        raise ConfigError(
            "worker, num_workers and rank belong together",
            mend="give a rank, and with a worker num_workers too",
        )
    check_whole("rank", rank, 0, deal.world_size - 1)
    if worker is None or num_workers is None:
        return rank, 0, 1
    check_whole("num_workers", num_workers, 1)
    check_whole("worker", worker, 0, num_workers - 1)
    return rank, worker, num_workers


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse a setting that is no whole number, or too small or large.

    Examples
    --------
    >>> check_whole("batch_size", 0, 1)
    Traceback (most recent call last):
    spark_dbp.errors.ConfigError: batch_size is 0 ...
    """
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        limit = "on" if most is None else f"to {most}"
        raise ConfigError(f"{name} is {value!r}", mend=f"give a whole number from {least} {limit}")
