"""Which rank and which worker this process is. Imports `errors`; torch only where it is loaded already."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from spark_dbp.errors import ConfigError
from spark_dbp.loaders.order import check_whole


class Place(NamedTuple):
    """A process among those that train together."""

    rank: int
    world_size: int
    worker: int
    num_workers: int


def find_place(rank: int | None = None, world_size: int | None = None) -> Place:
    """The place of this process, as webdataset finds it.

    The rank as given; else from the variables RANK and WORLD_SIZE; else from torch.distributed. The worker
    from the variables WORKER and NUM_WORKERS, else from torch's DataLoader.

    Raises
    ------
    ConfigError
        When the rank is none of the world's.

    Examples
    --------
    >>> find_place(1, 2)[:2]
    (1, 2)
    """
    if (rank is None) != (world_size is None):
        raise ConfigError("rank and world_size belong together", mend="give both, or none of them")
    if rank is None or world_size is None:
        rank, world_size = _find_pair("RANK", "WORLD_SIZE") or _ask_distributed()
    check_whole("world_size", world_size, 1)
    check_whole("rank", rank, 0)
    if rank >= world_size:
        raise ConfigError(f"rank is {rank}, and world_size {world_size}", mend="ranks count from 0")
    return Place(rank, world_size, *(_find_pair("WORKER", "NUM_WORKERS") or _ask_worker()))


def is_worker() -> bool:
    """Whether this is a worker process of torch's DataLoader."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


def share_on_machine(world_size: int) -> float:
    """Which part of the ranks this machine has, by LOCAL_WORLD_SIZE; without it, one rank."""
    try:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError):
        local = 1
    return min(1.0, max(1, local) / world_size)


def _find_pair(one: str, two: str) -> tuple[int, int] | None:
    if one not in os.environ or two not in os.environ:
        return None
    try:
        return int(os.environ[one]), int(os.environ[two])
    except ValueError:
        raise ConfigError(
            f"the variables {one} and {two} are {os.environ[one]!r} and {os.environ[two]!r}",
            mend="set both to whole numbers, or none of them",
        ) from None


def _ask_distributed() -> tuple[int, int]:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _ask_worker() -> tuple[int, int]:
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return (0, 1) if info is None else (info.id, info.num_workers)
