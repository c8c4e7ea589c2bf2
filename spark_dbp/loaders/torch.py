"""Kept samples for torch's DataLoader. Imports torch, `kept`, `place` and `errors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.loaders.kept import KeptSamples
from spark_dbp.loaders.order import Deal, Rest
from spark_dbp.loaders.reading import Sample

__all__ = ["KeptDataset", "KeptLoader"]


class KeptDataset(KeptSamples, IterableDataset):  # type: ignore[misc]
    """The kept samples of an index, for a rank.

    Use it with `KeptLoader`; with torch's DataLoader, give both the same `batch_size`. Call `set_epoch`
    before each epoch.

    Parameters
    ----------
    index : str or ShardIndex
        The directory that ``spark-dbp index`` wrote.
    batch_size : int
        That of the loader.
    transform : callable, optional
        Makes what the loader collates of a sample, a dict of ``__key__``, ``__url__``, and bytes by suffix.
        It runs in the workers. It may not leave a sample out, because the length would no longer be exact.
    **settings
        As of `KeptSamples`: rank, world_size, shuffle, seed, remainder, cache_dir and more.

    Examples
    --------
    >>> dataset = KeptDataset("index", batch_size=256, transform=decode, seed=1)  # doctest: +SKIP
    >>> loader = KeptLoader(dataset, num_workers=4)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     loader.set_epoch(epoch)
    ...     for images, labels in loader:
    ...         ...
    """

    def __init__(
        self,
        index: Any,
        *,
        batch_size: int,
        transform: Callable[[Sample], Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(index, batch_size=batch_size, **settings)
        if transform is not None and not callable(transform):
            raise ConfigError(
                f"transform is {type(transform).__name__}", mend="give a function of a sample, or nothing"
            )
        self.transform = transform

    def _convert(self, sample: Sample) -> Any:
        if self.transform is None:
            return sample
        try:
            return self.transform(sample)
        except SparkDbpError:
            raise
        except Exception as error:
            raise InputError(
                f"transform failed on sample {sample['__key__']!r} of {sample['__url__']}: {error!r}",
                mend="see the error above it; the sample may be damaged, or transform wrong",
            ) from error


class KeptLoader(DataLoader):  # type: ignore[misc]
    """A DataLoader of a `KeptDataset` that knows where it stands: it counts what it has delivered.

    `len` is exact: batches of this rank in an epoch. The order does not depend on the number of workers.

    Parameters
    ----------
    dataset : KeptDataset
        It says the size of a batch, and what becomes of the last samples.
    **settings
        As of torch's DataLoader: num_workers, collate_fn, pin_memory, persistent_workers and more.

    Raises
    ------
    ConfigError
        For a setting that contradicts the dataset.

    Examples
    --------
    >>> loader = KeptLoader(dataset, num_workers=4, persistent_workers=True)  # doctest: +SKIP
    >>> loader.load_state_dict(state)  # goes on in mid-epoch  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     state = loader.state_dict()
    """

    def __init__(self, dataset: KeptDataset, **settings: Any) -> None:
        if not isinstance(dataset, KeptSamples):
            raise ConfigError(
                f"KeptLoader got a {type(dataset).__name__}",
                mend="give a KeptDataset, or take torch's DataLoader",
            )
        batch_size = settings.pop("batch_size", dataset.batch_size)
        if batch_size != dataset.batch_size:
            raise ConfigError(
                f"batch_size is {batch_size!r}, and that of the dataset {dataset.batch_size}",
                mend="say it to the dataset only",
            )
        for name in ("shuffle", "sampler", "batch_sampler", "drop_last"):
            if settings.get(name):
                raise ConfigError(
                    f"KeptLoader takes no {name}",
                    mend="the dataset says the order: its shuffle, seed and drop_last",
                )
        if settings.get("in_order", True) is False:
            raise ConfigError(
                "with in_order=False nobody knows which batches were delivered", mend="leave in_order out"
            )
        n_workers = settings.get("num_workers", 0)
        if dataset.equal_workers and n_workers != dataset.num_workers:
            raise ConfigError(
                f"num_workers is {n_workers}, and that of the dataset {dataset.num_workers}",
                mend="give num_workers to both as it is",
            )
        super().__init__(dataset, batch_size=batch_size, **settings)
        self._passing: _Passing | None = None

    def __len__(self) -> int:
        return self.dataset.count_batches(self.dataset.find_rank())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before each pass, as with torch's DistributedSampler."""
        if epoch != self.dataset.epoch:
            self._passing = None
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        self._passing = passing = _Passing(*self.dataset.lead_pass())
        for batch in super().__iter__():
            passing.n_batches += 1  # before it is delivered: who has it may ask for the state
            yield batch
        passing.is_over = True
        self.dataset.end_pass()

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: behind the last batch delivered; after the epoch, at the next one."""
        passing = self._passing
        if passing is None:
            return self.dataset.make_state(self.dataset.epoch, self.dataset.peek_leader())
        if passing.is_over:
            return self.dataset.make_state(passing.epoch + 1, Rest())
        return self.dataset.make_state(passing.epoch, passing.deal.find_rest(passing.n_batches))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state stands, in the next pass; see `KeptDataset.load_state_dict`."""
        self.dataset.load_state_dict(state)
        self._passing = None


class _Passing:
    """A pass of a loader, and the batches that it has delivered."""

    def __init__(self, epoch: int, deal: Deal) -> None:
        self.epoch, self.deal = epoch, deal
        self.n_batches = 0
        self.is_over = False
