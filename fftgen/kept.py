"""Filters that are kept as they are where a spectrum is asked for: on CPUs, and where calls go in windows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from fftgen.eager import wide
from fftgen.problem import Problem
from fftgen.spectra import Spectrum

_AS_IT_IS = "torch.fft"  # begins what stands for a plan's digest


def as_it_is(digest: str) -> bool:
    """Whether a spectrum's digest says that its planes are taps, as on a CPU."""
    return digest.startswith(_AS_IT_IS)


def kept_for(problem: Problem) -> str:
    """The digest of filters that are kept as they are for a problem."""
    return f"{_AS_IT_IS}, {problem.mode} {problem.length} {problem.dtype}"


def as_they_are(filters: list[Tensor], taps: int, problem: Problem) -> Spectrum:
    """Filters (H, Lk) in place of their spectrum: planes (H, one each, taps).

    A copy, recorded like any other: what is done to a filter later does not change it.
    """
    rows = [pad(f.to(wide(filters[0])), (0, taps - f.shape[-1])) for f in filters]
    one = torch.ones(rows[0].shape[0], 2, device=rows[0].device)
    return Spectrum(torch.stack(rows, dim=1), one, kept_for(problem), taps)
