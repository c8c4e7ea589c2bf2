"""What the loaders share: order, reading and state of the kept samples.

Imports numpy, `index`, `order`, `passes`, `place`, `reading`, `shared`, `errors`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from spark_dbp.errors import ConfigError
from spark_dbp.loaders import stores
from spark_dbp.loaders.index import ShardIndex, open_index
from spark_dbp.loaders.order import SHUFFLE_WINDOW, Deal, Rest, SampleOrder, check_share, check_whole
from spark_dbp.loaders.passes import Pass, tell_of
from spark_dbp.loaders.place import Place, find_place, is_worker, share_on_machine
from spark_dbp.loaders.reading import CACHE_BYTES, WHOLE_SHARD_ABOVE, Sample, SampleReader
from spark_dbp.loaders.shared import SharedStart

log = logging.getLogger("spark_dbp")

STATE_VERSION = 1
# What a state and a loader must have in common: else the order is another one.
_SAME = ("index", "n", "seed", "shuffle", "shuffle_window")
# And what the state of a worker must have in common with the worker that goes on.
_SAME_WORKER = (
    *_SAME,
    *Place._fields,
    "batch_size",
    "remainder",
    "drop_last",
    "equal_workers",
)


class KeptSamples:
    """The kept samples of an index, in the order of an epoch, for one rank.

    Parameters
    ----------
    index : str or ShardIndex
        The directory that ``spark-dbp index`` wrote; local or a URI.
    batch_size : int
        Samples that a rank takes at once. They come one by one, but this says which rank and worker reads
        which.
    rank, world_size : int, optional
        Without them, the variables RANK and WORLD_SIZE, or torch.distributed, say them.
    shuffle : bool
        If False, samples come in the order of the shards.
    seed, epoch : int
        The order follows from both. See `set_epoch`.
    shuffle_window : int
        Samples that change places. Shards change places too.
    remainder : str
        What becomes of the samples that the ranks cannot share evenly; they are fewer than `world_size`.
        ``pad``: the first samples of the epoch come again, so that each rank has as many (`n_padded`).
        ``drop``: they are left out (`n_dropped`). ``uneven``: the first ranks have one more.
    drop_last : bool
        Leave out what does not fill a batch on each rank.
    equal_workers : bool
        Give each worker of each rank as many batches; needs `num_workers`.
    num_workers : int, optional
        Of the DataLoader.
    cache_dir : str, optional
        A local directory for whole shards of a store. Without it, byte ranges are read always.
    cache_bytes : int
        Most bytes in it.
    whole_shard_above : float
        Shards of a store of which this machine reads a larger share of the bytes are fetched whole.
    moved : tuple of (str, str), optional
        The beginning of the shards' paths in the index, and what stands in its place here.
    storage_options : mapping, optional
        Of fsspec.

    Raises
    ------
    InputError
        When there is no index, or it is damaged.
    ConfigError
        When a setting is wrong.
    """

    def __init__(
        self,
        index: str | os.PathLike[str] | ShardIndex,
        *,
        batch_size: int,
        rank: int | None = None,
        world_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        shuffle_window: int = SHUFFLE_WINDOW,
        remainder: str = "pad",
        drop_last: bool = False,
        equal_workers: bool = False,
        num_workers: int | None = None,
        cache_dir: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        whole_shard_above: float = WHOLE_SHARD_ABOVE,
        moved: tuple[str, str] | None = None,
        storage_options: stores.Options | None = None,
    ) -> None:
        self.index = open_index(index, moved, storage_options)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.shuffle, self.seed, self.shuffle_window = shuffle, seed, shuffle_window
        self.remainder, self.drop_last = remainder, drop_last
        self.equal_workers, self.num_workers = equal_workers, num_workers
        self._reading: dict[str, Any] = {
            "cache_dir": cache_dir,
            "cache_bytes": cache_bytes,
            "whole_shard_above": whole_shard_above,
        }
        if num_workers is not None:
            check_whole("num_workers", num_workers, 0)
        if equal_workers and num_workers is None:
            raise ConfigError(
                "equal_workers needs to know how many workers there are", mend="give num_workers too"
            )
        find_place(rank, world_size)
        SampleOrder(np.zeros(0, np.int64), seed=seed, epoch=epoch, window=shuffle_window)
        SampleReader(self.index, **self._reading)
        self._start = SharedStart(epoch)
        self._readers: dict[int, SampleReader] = {}
        self._pass: Pass | None = None  # that was begun in this process
        self._pending: dict[str, Any] | None = None  # state of a worker, for its next pass
        self._deal()

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._start.epoch

    @property
    def n_padded(self) -> int:
        """Samples of an epoch that come again, so that all ranks have as many; of all ranks together."""
        return self._deal().n_padded

    @property
    def n_dropped(self) -> int:
        """Samples of an epoch that are left out, so that all ranks have as many; of all ranks together."""
        return self._deal().n_dropped

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before each pass: its order follows from the seed and the epoch.

        It reaches workers that live on from epoch to epoch too. A position that was loaded holds for its own
        epoch only.

        Parameters
        ----------
        epoch : int
        """
        check_whole("epoch", epoch, 0, 2**63 - 1)
        if epoch != self._start.epoch:
            self._start.set(epoch, Rest())
            self._pass = None

    def __len__(self) -> int:
        """Samples of this rank in an epoch; padded ones count."""
        return self.count_samples(self.find_rank())

    def count_samples(
        self, rank: int | None = None, worker: int | None = None, num_workers: int | None = None
    ) -> int:
        """Samples in an epoch: of all ranks, of a rank, or of a worker of a rank.

        Parameters
        ----------
        rank : int, optional
        worker, num_workers : int, optional
            The worker of a DataLoader with so many.

        Returns
        -------
        int
            Padded samples count.
        """
        deal = self._deal()
        return deal.count_samples(*check_share(deal, rank, worker, num_workers))

    def count_batches(
        self, rank: int | None = None, worker: int | None = None, num_workers: int | None = None
    ) -> int:
        """Batches in an epoch: of all ranks together, of a rank, or of a worker of a rank.

        Takes what `count_samples` takes.
        """
        deal = self._deal()
        rank, *of_worker = check_share(deal, rank, worker, num_workers)
        ranks = range(deal.world_size) if rank is None else [rank]
        return sum(deal.count_batches(each, *of_worker) for each in ranks)

    def __iter__(self) -> Iterator[Any]:
        place = find_place(self.rank, self.world_size)
        if self.equal_workers and place.num_workers > 1 and place.num_workers != self.num_workers:
            raise ConfigError(
                f"there are {place.num_workers} workers, and equal_workers was told of {self.num_workers}",
                mend="give num_workers to both as it is",
            )
        worker = place.worker if is_worker() else None
        state, self._pending = self._pending, None
        if state is None:
            epoch, rest = self._start.take(worker)
            begun = Pass(epoch, self._deal(rest, place.world_size), place)
        else:  # the worker goes on in its own batches
            epoch, rest = state["epoch"], _read_rest(state)
            begun = Pass(epoch, self._deal(rest, place.world_size), place, state["batch"], state["inside"])
        self._pass = begun
        if place[::2] == (0, 0):
            tell_of(begun, len(self.index))
        return self._iterate(begun)

    def state_dict(self, delivered: int | None = None) -> dict[str, Any]:
        """Where the epoch stands. Equal on all ranks when they are in step.

        Where worker processes make the batches, this process does not know which of them were delivered: take
        `KeptLoader`, which does.

        Parameters
        ----------
        delivered : int, optional
            Samples that this rank had since `set_epoch` or `load_state_dict`, where somebody else counts
            them.

        Returns
        -------
        dict
            Numbers and texts, for JSON too.

        Raises
        ------
        ConfigError
            When nobody knows how many samples were delivered.
        """
        if is_worker():
            return self._worker_state()
        if delivered is not None:
            check_whole("delivered", delivered, 0)
            deal = self._deal(self._start.rest)
            return self.make_state(
                self._start.epoch, deal.find_rest(*deal.find_batch(self.find_rank(), delivered))
            )
        if self._start.has_workers or (self._pass is not None and self._pass.place.num_workers > 1):
            raise ConfigError(
                "worker processes make the batches, so this process does not know how many were delivered",
                mend="load with spark_dbp.loaders.torch.KeptLoader, which counts them; or count the samples "
                "of this rank yourself, and call state_dict(delivered=...)",
            )
        if self._pass is not None:
            return self.make_state(self._pass.epoch, self._pass.find_rest())
        return self.make_state(self._start.epoch, self._start.peek())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state stands, in the next pass. Passes after that begin at their beginning.

        Another number of workers, ranks or samples in a batch is no matter: what is left of the epoch is
        dealt anew.

        Parameters
        ----------
        state : dict
            From `state_dict`.

        Raises
        ------
        ConfigError
            When it is the state of another index, or of another order.
        """
        self._check_state(state)
        self._pass = None
        if "worker" in state:
            if not is_worker():
                raise ConfigError(
                    "the state is of a worker process of a StatefulDataLoader",
                    mend="give it to the loader that it came from",
                )
            self._pending = dict(state)
        else:
            self._start.set(int(state["epoch"]), _read_rest(state))

    def make_state(self, epoch: int, rest: Rest) -> dict[str, Any]:
        """The state in which `rest` is left of an epoch."""
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "sample_in_epoch": rest.position,
            "left": [list(span) for span in rest.left],
            **self._describe(),
        }

    def _describe(self) -> dict[str, Any]:
        return {
            "index": self.index.digest,
            "n": len(self.index),
            "seed": int(self.seed),
            "shuffle": bool(self.shuffle),
            "shuffle_window": int(self.shuffle_window),
        }

    def _describe_worker(self, place: Place) -> dict[str, Any]:
        return {
            **self._describe(),
            **place._asdict(),
            "batch_size": self.batch_size,
            "remainder": self.remainder,
            "drop_last": self.drop_last,
            "equal_workers": self.equal_workers,
        }

    def _worker_state(self) -> dict[str, Any]:
        """For torchdata's StatefulDataLoader, which keeps the state of each worker."""
        if self._pending is not None:
            return dict(self._pending)
        place = find_place(self.rank, self.world_size)
        begun = self._pass or Pass(self._start.epoch, self._deal(), place)
        state = self.make_state(begun.epoch, begun.deal.rest)
        return {**state, **self._describe_worker(place), "batch": begun.batch, "inside": begun.inside}

    def _check_state(self, state: dict[str, Any]) -> None:
        mend = "load the state into a loader with the index and the settings that it was made with"
        if not isinstance(state, dict) or "sample_in_epoch" not in state:
            raise ConfigError("this is no state of a loader", mend="give what state_dict returned")
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"the state has version {state.get('version')!r}, not {STATE_VERSION}",
                mend="load it with the version of spark-dbp that made it",
            )
        is_of_worker = "worker" in state and is_worker()
        own = (
            self._describe_worker(find_place(self.rank, self.world_size))
            if is_of_worker
            else self._describe()
        )
        for name in _SAME_WORKER if is_of_worker else _SAME:
            if state.get(name) != own[name]:
                raise ConfigError(
                    f"the state has {name} {state.get(name)!r}, this loader {own[name]!r}", mend=mend
                )
        check_whole("epoch of the state", state.get("epoch"), 0, 2**63 - 1)
        check_whole("sample_in_epoch of the state", state["sample_in_epoch"], 0, len(self.index))

    def find_rank(self) -> int:
        """The rank of this process."""
        return find_place(self.rank, self.world_size).rank

    def lead_pass(self) -> tuple[int, Deal]:
        """Begin a pass for a loader that counts what it delivers: the epoch, and who gets what."""
        self._pass = None
        epoch, rest = self._start.lead()
        return epoch, self._deal(rest)

    def end_pass(self) -> None:
        """Say that such a pass has come to its end."""
        self._start.end_lead()

    def peek_leader(self) -> Rest:
        """What is left of the epoch for the next pass of such a loader."""
        return self._start.peek_leader()

    def _deal(self, rest: Rest | None = None, world_size: int | None = None) -> Deal:
        n_equal = max(1, self.num_workers or 1) if self.equal_workers else 1
        return Deal(
            len(self.index),
            self.batch_size,
            world_size or find_place(self.rank, self.world_size).world_size,
            remainder=self.remainder,
            drop_last=self.drop_last,
            n_equal=n_equal,
            rest=rest,
        )

    def _iterate(self, begun: Pass) -> Iterator[Any]:
        deal, place = begun.deal, begun.place
        order = SampleOrder(
            self.index.kept,
            seed=self.seed,
            epoch=begun.epoch,
            shuffle=self.shuffle,
            window=self.shuffle_window,
        )
        # Shards of a window are in use together, and those of the next one soon.
        self.index.most_rows = max(self.index.most_rows, 2 * min(self.shuffle_window, order.n))
        reader = self._open_reader(place.world_size)
        first, skipped = begun.batch, begun.inside
        numbers = range(first, deal.count_batches(place.rank), place.num_workers)

        def locate() -> Iterator[tuple[Any, Any]]:
            window = -1
            for number in numbers:
                positions = deal.positions(place.rank, number)[skipped if number == first else 0 :]
                if positions[0] // self.shuffle_window != window:
                    window = positions[0] // self.shuffle_window
                    reader.fetch_ahead(order.shards_from(int(positions[0]), self.shuffle_window))
                yield order.locate(positions)

        for number, samples in zip(numbers, reader.read_batches(locate()), strict=True):
            begun.batch, begun.inside = number, skipped if number == first else 0
            for sample in samples:
                begun.inside += 1  # before it is delivered: who has it may ask for the state
                yield self._convert(sample)
            begun.batch, begun.inside = number + place.num_workers, 0

    def _convert(self, sample: Sample) -> Any:
        return sample

    def _open_reader(self, world_size: int) -> SampleReader:
        reader = self._readers.get(os.getpid())
        if reader is None:  # a forked process shares neither open files nor threads
            share = share_on_machine(world_size)
            reader = SampleReader(self.index, share=share, **self._reading)
            self._readers = {os.getpid(): reader}
        return reader

    def __getstate__(self) -> dict[str, Any]:
        place = find_place(self.rank, self.world_size)  # a new process may not be able to find its rank
        mine = {"rank": place.rank, "world_size": place.world_size, "_readers": {}, "_pass": None}
        return {**self.__dict__, **mine}


def _read_rest(state: dict[str, Any]) -> Rest:
    left = tuple((int(start), int(stop)) for start, stop in state.get("left", ()))
    return Rest(int(state["sample_in_epoch"]), left)
