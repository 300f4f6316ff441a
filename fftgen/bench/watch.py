"""A watch over work on the device that this process does itself: a kernel that hangs cannot be called off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType


class Watch:
    """A context that calls ``end(what)``, in a thread of its own, when something is at work for too long.

    ``limit``: seconds; None: nothing takes too long.
    """

    def __init__(self, limit: float | None, end: Callable[[str], None]) -> None:
        self._limit, self._end = limit, end
        self._at = ""
        self._over = False
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def at(self, what: str) -> None:
        """Say what is at work from now on; empty: nothing that could hang."""
        self._at = what
        self._moved.set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._over = True
        self._moved.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over:
            if not self._moved.wait(self._limit if self._at else None):
                self._end(self._at)
                return
            self._moved.clear()
