"""The constants of the filter kernels, from exact phases: evaluated in float64, rounded to fp32 once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftgen.planner.filter import Filter, FilterTable
from fftgen.planner.filter_design import exponents


def _values(table: FilterTable) -> npt.NDArray[np.complex64]:
    """The numbers of a table, ``(rows, count)``."""
    import sympy  # slow to load: where numbers are made only

    from fftgen.planner.twiddle import K, R, evaluate

    count = np.arange(table.count)
    if table.kind != "twiddle":
        return evaluate(-K / sympy.Integer(table.length), table.step * count, 0).astype(np.complex64)[None]
    pure = -K * R / sympy.Integer(table.length)
    weighted = pure + R / (4 * sympy.Integer(table.length))
    rows = [
        evaluate(weighted if carries else pure, k, count)
        for k, carries in exponents(table.radix, table.weighted)
    ]
    return np.stack(rows).astype(np.complex64)


def fill(found: Filter, block: npt.NDArray[np.uint8]) -> None:
    """Write the filter's tables into a plan's table block."""
    for table in found.tables:
        raw = np.ascontiguousarray(_values(table)).view(np.uint8).reshape(-1)
        block[table.offset : table.offset + table.nbytes] = raw


def first_weights(radix: int) -> npt.NDArray[np.complex128]:
    """The right-angle weights of the first stage's digit, exp(i pi j / (2 R)), ``(R,)``."""
    import sympy

    from fftgen.planner.twiddle import K, evaluate

    return evaluate(K / (4 * sympy.Integer(radix)), np.arange(radix), 0)
