"""The types of tensors that signals and spectra of a plan are stored in."""

from __future__ import annotations

import torch

from fftgen.planner.plan import Plan

# Of signals, by name.
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def stored_as(dtype: torch.dtype) -> str | None:
    """The name of a storage type; None for a dtype that is none."""
    for name, served in TORCH.items():  # torch.compile of PyTorch 2.6 cannot trace next() with a default
        if served == dtype:
            return name
    return None


def storage(plan: Plan) -> torch.dtype:
    """The torch dtype of a plan's signals."""
    return TORCH[plan.problem.dtype]


def spectrum_dtype(plan: Plan) -> torch.dtype:
    """The torch dtype of a filter's spectrum."""
    return TORCH[plan.spectrum_type]
