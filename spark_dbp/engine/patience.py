"""Wait for what may never answer: a store, or a cluster without free cores. Imports nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Threads that were not waited for any longer.
_left: list[threading.Thread] = []


def finish_within(seconds: float, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises.

    Raises
    ------
    TimeoutError
        When it takes longer. It goes on in a thread that does not keep the process alive.

    Examples
    --------
    >>> finish_within(9, lambda: 7)
    7
    """
    done: list[tuple[Result | None, BaseException | None]] = []

    def run() -> None:
        try:
            done.append((work(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        _left.append(thread)
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    result, error = done[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def is_any_waiting() -> bool:
    """Whether work that was given up still waits: a store's client may hold up the end of a process then.

    Examples
    --------
    >>> is_any_waiting()
    False
    """
    return any(thread.is_alive() for thread in _left)
