"""What was decided about the end of a filter's gradient: from a sum of spectra to the gradient of taps.

A spectrum is S = F W k: weights w_n = exp(i pi n / 2N), then the DFT. With C the sum over the batch of
conj(X) V, the gradient of tap j is that of the transposed map (F and W are their own transposes),

    q = W F conj(C) / (s^2 N),   dk_j = Re q_j,

s the product of the scales of the stages, which both signals came through. On a circle of P steps lag
j - P is the same as lag j, and the transform's numbers, polynomials in x with x^N = i, have it in Im q at
N - P + j.

So the kernels are those of the filter (planner/filter.py) with everything the other way around: they read
where those write, their stages run from the last to the first, each with twiddles before its DFTs, and the
weights come at the end. The tables are the same.
"""

from __future__ import annotations

from fftgen.planner.filter import Filter, FilterLaunch, chunk_channels


def comes_around(found: Filter, transform: int, period: int) -> bool:
    """A launch of its own adds what has come around a circle of ``period`` steps (0: no circle).

    Where a block has the whole transform it adds by itself, and where N = P both terms are one number.
    """
    return not found.whole and period not in (0, transform)


def finish_launches(
    found: Filter, transform: int, channels: int, reach: int, period: int
) -> tuple[FilterLaunch, ...]:
    """The launches that make ``reach`` lags of ``channels`` channels of a sum, in order: chunk by chunk."""
    chunk = chunk_channels(found, transform, channels)
    made = []
    for first in range(0, channels, chunk):
        count = min(chunk, channels - first)
        for kernel in found.kernels:
            if kernel.role != "finish_wrap":
                blocks = transform // (kernel.length * kernel.columns)
                made.append(FilterLaunch(kernel, count * blocks, first))
    if comes_around(found, transform, period):
        wrap = found.kernels[-1]
        made.append(FilterLaunch(wrap, channels * -(-reach // wrap.threads), 0))
    return tuple(made)
