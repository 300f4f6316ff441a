"""Tensors of more than 2**31 elements: offsets are computed in 64 bits, shown with addresses, not memory.

Every row is a buffer of its own in the simulator, gigabytes from the next; a 32-bit offset meets no buffer
and stops the simulation.
"""

from __future__ import annotations

import gradients
import numpy as np
import pytest
import torch
from calls import TORCH, built

from fftgen import emulate, gradient_accuracy
from fftgen.launch import Call, Signal, Step, run
from fftgen.planner import search
from fftgen.planner.launch import launches, peaks_words, workspace_elements
from fftgen.problem import Problem
from fftgen.spectra import spectrum

FAR = 2**31 + 4096  # elements; a product with a batch index needs 33 bits


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("mode", "length", "dtype"),
    [
        ("causal", 256, "bf16"),
        ("circular", 256, "bf16"),
        ("circular", 257, "bf16"),
        ("causal", 65_536, "bf16"),
        ("causal", 256, "fp32"),
        ("circular", 5003, "fp32"),
        ("causal", 65_536, "fp32"),
    ],
)
@pytest.mark.parametrize("far", ["batch", "channel"])
def test_rows_lie_gigabytes_apart(
    mode: str,
    length: int,
    dtype: str,
    far: str,
    rng: np.random.Generator,
) -> None:
    plan = search.plan(Problem(mode, length, dtype), "sm_90")
    module, ptx = built(plan)
    shape = (3, 1) if far == "batch" else (1, 3)
    u = torch.from_numpy(rng.standard_normal((*shape, length))).to(TORCH[dtype])
    k = torch.from_numpy(
        rng.standard_normal((shape[1], length)) * np.exp(-8 * np.arange(length) / length)
    ).float()
    y = torch.full_like(u, float("nan"))

    device = emulate.Simulated(ptx, module.source.text)
    memory = device.memory

    def rows(name: str, x: torch.Tensor, writable: bool) -> Signal:
        first = 0
        for i, row in enumerate(x.view(torch.uint8).numpy().reshape(3, -1)):
            if i:
                memory._next = first + x.element_size() * FAR * i
            at = memory.bind(f"{name}{i}", row, writable=writable, initialized=not writable)
            first = first or at
        return Signal(first, FAR, 0) if far == "batch" else Signal(first, 0, FAR)

    made = spectrum(plan, k)
    signals = {"u": rows("u", u, False), "y": rows("y", y, True)}
    tables = torch.frombuffer(bytearray(module.tables), dtype=torch.uint8)
    elements = workspace_elements(plan, *shape)
    workspace = torch.empty(elements, dtype=u.dtype) if elements else None
    peaks = torch.zeros(max(1, peaks_words(plan, *shape)), dtype=torch.int32)
    call = Call(
        batch=shape[0],
        channels=shape[1],
        length=length,
        spectrum=device.address("spectrum", made.planes),
        scale=device.address("scale", made.scale),
        tables=device.address("tables", tables),
        workspace=0 if workspace is None else device.address("workspace", workspace),
        peaks=device.address("peaks", peaks),
        vector=length % 8 == 0,
        **signals,
    )
    steps = [Step(plan, call, launch) for launch in launches(plan, *shape, length)]
    addresses = call.spectrum, call.scale, call.tables, call.workspace, call.peaks
    run(steps, (call.u.address, 0, 0, call.y.address, 0, 0, *addresses), device)
    ref = gradients.composite(u, k, mode=mode, length=length)
    gradients.judge(y, ref, gradient_accuracy.result(dtype, plan.order, plan.compute_format))
