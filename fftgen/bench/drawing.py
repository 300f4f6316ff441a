"""A picture without a display (matplotlib, an optional dependency)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fftgen.durable import check_writable, writing
from fftgen.errors import InputError, ToolchainError

FORMATS = (".png", ".svg", ".pdf")


def require(path: Path | None = None) -> None:
    """Raises ToolchainError with the way out where matplotlib is missing, and InputError for a picture that
    could not be written to ``path``: before there is work to lose.

    Of a name without an ending matplotlib would make another one.
    """
    if path is not None:
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"{path} cannot be drawn: name a file that ends in {', '.join(FORMATS)}")
        with writing(path):
            check_writable(path)
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
    require(path)
    with writing(path):
        made.savefig(path, dpi=120)
