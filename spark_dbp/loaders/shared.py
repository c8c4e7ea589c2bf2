"""Where the next pass begins, seen by all processes of a loader. Imports numpy, `order`, `errors`.

The numbers lie in shared memory where torch is loaded, because workers that live on from epoch to epoch see
nothing else of what the main process says. Without torch there are no such workers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError
from spark_dbp.loaders.order import Rest

# Where what is written.
_EPOCH, _SET, _HAS_WORKERS, _IS_LED, _POSITION, _N_LEFT = range(6)
_LEFT, _MOST_LEFT = 6, 2048
_TAKEN, _MOST_WORKERS = _LEFT + 2 * _MOST_LEFT, 2048  # by the leader, the main process, each worker
_SIZE = _TAKEN + 2 + _MOST_WORKERS


class SharedStart:
    """The epoch, and what is left of it.

    A position that was set holds for one pass. As no process knows when the last one has begun that pass,
    each process notes which setting it has taken. A loader that leads says before each pass where it begins,
    so that a worker that never came to begin one does no harm.

    Examples
    --------
    >>> start = SharedStart(epoch=1)
    >>> start.set(1, Rest(30))
    >>> start.take(), start.take()
    ((1, Rest(position=30, left=())), (1, Rest(position=0, left=())))
    """

    def __init__(self, epoch: int = 0) -> None:
        self._tensor: Any = None
        self._numbers: npt.NDArray[np.int64] = np.zeros(_SIZE, np.int64)
        self._share()
        self._numbers[_EPOCH] = epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return int(self._numbers[_EPOCH])

    @property
    def rest(self) -> Rest:
        """What was set last, whether taken or not."""
        numbers = self._numbers[_LEFT : _LEFT + 2 * int(self._numbers[_N_LEFT])].tolist()
        left = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        return Rest(int(self._numbers[_POSITION]), left)

    @property
    def has_workers(self) -> bool:
        """Whether worker processes have begun a pass since the start was set."""
        return bool(self._numbers[_HAS_WORKERS])

    def set(self, epoch: int, rest: Rest) -> None:
        """Say where the next pass begins."""
        if len(rest.left) > _MOST_LEFT:
            raise ConfigError(
                f"the state is of {len(rest.left):,} ranks in the middle of a batch",
                mend=f"take states between batches, for more than {_MOST_LEFT:,} ranks",
            )
        if self._tensor is None:
            self._share()  # torch may have been loaded since
        numbers = [number for span in rest.left for number in span]
        self._numbers[_LEFT : _LEFT + len(numbers)] = numbers
        self._numbers[_N_LEFT], self._numbers[_POSITION] = len(rest.left), rest.position
        self._numbers[_EPOCH], self._numbers[_IS_LED], self._numbers[_HAS_WORKERS] = epoch, 0, 0
        self._numbers[_SET] += 1

    def peek(self, worker: int | None = None) -> Rest:
        """What is left for the next pass of this process, which is the worker of that number."""
        is_led = bool(self._numbers[_IS_LED])
        return self.rest if is_led or self._numbers[_place(worker)] != self._numbers[_SET] else Rest()

    def take(self, worker: int | None = None) -> tuple[int, Rest]:
        """The epoch and what is left of it, for a pass that begins now."""
        rest = self.peek(worker)
        self._numbers[_place(worker)] = self._numbers[_SET]
        self._numbers[_HAS_WORKERS] = worker is not None
        return self.epoch, rest

    def peek_leader(self) -> Rest:
        """What is left for the next pass of a loader that leads."""
        return self.rest if self._numbers[_TAKEN] != self._numbers[_SET] else Rest()

    def lead(self) -> tuple[int, Rest]:
        """Begin a pass of a loader that leads, and say so to those that take part in it."""
        epoch, rest = self.epoch, self.peek_leader()
        self.set(epoch, rest)
        self._numbers[_IS_LED], self._numbers[_TAKEN] = 1, self._numbers[_SET]
        return epoch, rest

    def end_lead(self) -> None:
        """Say that such a pass has come to its end, unless something else was set meanwhile."""
        if self._numbers[_IS_LED]:
            self.set(self.epoch, Rest())

    def _share(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "from_numpy"):
            self._tensor = torch.from_numpy(self._numbers).share_memory_()
            self._numbers = self._tensor.numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensor": self._tensor, "_numbers": None if self._tensor is not None else self._numbers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._tensor is not None:
            self._numbers = self._tensor.numpy()


def _place(worker: int | None) -> int:
    if worker is None:
        return _TAKEN + 1
    if worker >= _MOST_WORKERS:
        raise ConfigError(f"there is a worker {worker:,}", mend=f"take at most {_MOST_WORKERS:,} workers")
    return _TAKEN + 2 + worker
