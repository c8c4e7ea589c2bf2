"""Hold back Ctrl-C and SIGTERM while a program starts that would outlive this one. Imports nothing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_signals() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM inside take effect at the end; a second one does at once.

    A Java that Python leaves while it starts never learns that nobody will use it, and stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if noted:
            signal.raise_signal(noted[0])
