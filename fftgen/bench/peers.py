"""Other programs that compute long convolutions, measured where they are installed.

None is needed by fftgen, so each is looked up by name when a case is prepared. Signatures as documented by
their authors: ``flashfftconv.FlashFFTConv(fft_size, dtype)(u, k, pregate, postgate)`` with u and gates in
the dtype, k (H, Lk) fp32; ``fft_causal_conv1d(x, weight)`` of cudnn.ops (cuDNN 9.26, nvidia-cudnn-frontend)
and of subquadratic_ops_torch with x (B, D, L), weight (D, K) of the same dtype, weight[0] for the current
sample. All of them document gradients through autograd; where one records none, a backward row says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import Contender, Prepared, Unavailable, gate
from fftgen.bench.inputs import Inputs

FLASH_SIZES = tuple(1 << e for e in range(8, 23))


def find(module: str, name: str) -> Any:
    """``module.name``, or Unavailable with the reason."""
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        raise Unavailable(f"{module} has no {name}: an older release") from None
    except ImportError as error:
        top = module.split(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            raise Unavailable("not installed") from None
        raise Unavailable(f"cannot be imported: {error}") from None


def _flashfftconv(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
    module = find("flashfftconv", "FlashFFTConv")
    if case.problem.dtype == "fp32":
        raise Unavailable("takes signals of 16 bits")
    if case.points not in FLASH_SIZES:
        raise Unavailable(f"takes transforms of powers of two from 256 to 4194304, not {case.points}")
    # In evaluation mode nothing is saved for a backward pass.
    conv = module(case.points, dtype=sets[0].u.dtype).to(backend.device).train(case.direction == "backward")

    def call(x: Inputs) -> Callable[[], Tensor]:
        gates = () if x.in_gate is None else (x.in_gate, x.out_gate)

        def run() -> Tensor:
            y: Tensor = conv(x.u, x.k, *gates)
            return y

        return run

    return Prepared(tuple(call(x) for x in sets))


def _causal(module: str) -> Callable[[Case, Sequence[Inputs], Backend], Prepared]:
    """``fft_causal_conv1d`` of a package: causal, no gates, filter in the signal's dtype."""

    def prepare(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
        function = find(module, "fft_causal_conv1d")
        if not case.problem.causal:
            raise Unavailable("causal convolutions only")

        def call(x: Inputs) -> Callable[[], Tensor]:
            def run() -> Tensor:
                y: Tensor = function(gate(x.u, x.in_gate), x.k.to(x.u.dtype))
                return gate(y, x.out_gate)

            return run

        notes = ["gates as products of their own"] * case.gated
        if case.problem.dtype != "fp32":
            notes.append(f"filter rounded to {case.problem.dtype}")
        return Prepared(tuple(call(x) for x in sets), note="; ".join(notes))

    return prepare


PEERS = (
    Contender("flashfftconv", "FlashFFTConv, the filter's transform inside", _flashfftconv),
    Contender(
        "subquadratic-ops",
        "subquadratic_ops_torch.fft_causal_conv1d",
        _causal("subquadratic_ops_torch.fft_causal_conv1d"),
    ),
    Contender("cudnn", "cudnn.ops.fft_causal_conv1d", _causal("cudnn.ops")),
)
