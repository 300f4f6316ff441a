"""The names under which operators know convolutions, so that graphs can hold them: mode, length and dtype.

``causal-4096-bf16``, say; ``causal-*-bf16`` takes its length from each call, and one that was loaded is
``artifact:<digest>:causal-4096-bf16``.
"""

from __future__ import annotations

import re

from fftgen.errors import InputError

_HANDLE = re.compile(r"(?:.*:)?(causal|circular)-([0-9]+|\*)-(bf16|fp16|fp32)")


def terms(handle: str, steps: int) -> tuple[str, int]:
    """Mode and length that a handle names; ``*`` is the length of the signal."""
    mode, length, _ = words(handle)
    return mode, steps if length == "*" else int(length)


def words(handle: str) -> tuple[str, str, str]:
    """Mode, length and dtype in a handle, of an artifact's as well. Raises InputError where it is none."""
    found = _HANDLE.fullmatch(handle)
    if found is None:
        raise InputError(not_loaded(handle))
    mode, length, dtype = found.groups()
    return mode, length, dtype


def not_loaded(handle: str) -> str:
    return f"no convolution is loaded under {handle!r}: call fftgen.load on its artifact first"


def any_length(mode: str, dtype: str) -> str:
    """The handle of a convolution that takes its length from each call's shapes (op.py)."""
    return f"{mode}-*-{dtype}"
