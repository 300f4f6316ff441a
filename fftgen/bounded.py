"""A dictionary of the latest things: shapes that come and go must not pile up."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(dict[Key, Value]):
    """Forgets all that it holds when it is full. Threads may share one: at worst they make a thing twice."""

    SIZE = 256

    def keep(self, key: Key, value: Value) -> Value:
        """Hold a value, and return it."""
        if len(self) >= self.SIZE:
            self.clear()
        self[key] = value
        return value
