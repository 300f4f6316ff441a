"""A picture without a display (matplotlib, an optional dependency)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fftgen.durable import writing
from fftgen.errors import InputError, ToolchainError


def require() -> None:
    """Raises ToolchainError with the way out where matplotlib is missing: before there is work to lose."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ToolchainError("matplotlib is not installed: pip install 'fftgen[bench]'") from error


def figure(width: float, height: float) -> Any:
    """An empty figure of so many inches. Raises ToolchainError without matplotlib."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)  # no display is asked for
    return made


def save(made: Any, path: Path) -> None:
    """Write a figure; the file's ending names the format. Raises InputError when it cannot be written."""
    with writing(path):
        try:
            made.savefig(path, dpi=120)
        except ValueError as error:
            raise InputError(f"{path} cannot be written ({error}): name a .png, .svg or .pdf file") from error
