"""What arguments that are no tensors may be. Without PyTorch, which some commands need not load."""

from __future__ import annotations

import math
import os
from numbers import Real

from fftgen.errors import InputError


def check_flag(name: str, x: object) -> None:
    if not isinstance(x, bool):
        raise InputError(f"{name} must be True or False, got {x!r} ({type(x).__name__})")


def check_path(path: object) -> str:
    """The path of a file, as text."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InputError(f"path must be that of a file, got {path!r} ({type(path).__name__})")
    if not text or "\0" in text:
        raise InputError(f"path {text!r} names no file: one or more characters, none of them NUL")
    return text


def check_number(name: str, x: object, most: float = math.inf) -> None:
    """A finite number from 0 to ``most``."""
    if isinstance(x, bool) or not isinstance(x, Real) or not 0 <= float(x) <= most or math.isinf(float(x)):
        limit = "0 or more" if most == math.inf else f"from 0 to {most:g}"
        raise InputError(f"{name} must be a finite number, {limit}, got {x!r} ({type(x).__name__})")
