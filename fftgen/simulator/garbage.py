"""Python's collector, held off while many small objects are made that all stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def none_to_collect() -> Iterator[None]:
    """No collection meanwhile.

    A module is some hundred thousand objects and none of them garbage: the collector would look through all
    that the process holds, several times, and take half of the time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
