"""Monarch order: which frequency stands where after the stages of a transform (design 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt


def monarch_permutation(factors: Sequence[int]) -> npt.NDArray[np.int64]:
    """The frequency at each position of a spectrum in Monarch order, int64 ``(N,)``.

    Position ``(k_1, ..., k_p)``, the last digit fastest, holds frequency ``k_1 + N_1 k_2 + N_1 N_2 k_3
    + ...``: the digits of the position read backwards. ``natural[monarch_permutation(factors)]`` brings
    a spectrum from natural into Monarch order; ``numpy.argsort`` of it goes back.
    """
    natural = np.arange(prod(factors), dtype=np.int64).reshape(tuple(reversed(factors)))
    return np.ascontiguousarray(natural.transpose()).reshape(-1)
