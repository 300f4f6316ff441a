"""Times that want the GPU for themselves: skipped in workers, where other tests run beside them.

``python -m pytest -n 0 tests/gpu/test_times_on_gpu.py`` runs them.
"""

from __future__ import annotations

import os

import pytest
import torch
from bench_kit import case
from test_kernels_on_gpu import needs, no_gpu

from fftgen.bench.backend import CudaBackend
from fftgen.bench.kernels import STAGES, kernel_times
from fftgen.bench.measure import copy_bandwidth
from fftgen.bench.rates import device_rates
from fftgen.bench.row import measure_row

SHARED = "PYTEST_XDIST_WORKER" in os.environ

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(no_gpu()), reason=no_gpu() or "there is a GPU"),
    pytest.mark.skipif(SHARED, reason="times want the GPU alone: pytest -n 0 tests/gpu/test_times_on_gpu.py"),
]


def test_device_time_is_that_of_the_work() -> None:
    """Twice the copy takes about twice the time, and an empty call next to nothing."""
    backend = CudaBackend()
    x = torch.empty(2, 1 << 28, dtype=torch.uint8, device=backend.device)
    half = x[:, : 1 << 27]

    def median(*calls: object) -> list[float]:
        return sorted(backend.timer.time(calls))  # type: ignore[arg-type]

    for _ in range(2):  # the first round warms up
        whole = median(*[lambda: x[1].copy_(x[0])] * 9)[4]
        part = median(*[lambda: half[1].copy_(half[0])] * 9)[4]
        nothing = median(*[lambda: None] * 9)[4]
    assert 1.6 < whole / part < 2.4
    assert nothing < 0.2 * part


def test_bandwidth_is_that_of_a_gpu() -> None:
    found = copy_bandwidth(CudaBackend(), seconds=0.1)
    assert 1e11 < found["bytes_per_s"] < 3e13
    assert found["spread"] < 0.1


def test_the_l2_and_matrix_units_are_those_of_a_gpu() -> None:
    found = device_rates(CudaBackend())
    assert all(5e11 < rate < 1e14 for rate in found["l2_bytes_per_s"].values()), found
    assert 1e13 < found["matrix_flops"] < 1e16


def test_kernels_by_themselves_take_about_what_their_call_takes() -> None:
    """A filter and a convolution: the gaps that a call has between them are short beside both."""
    needs("bf16")
    of, backend = case("causal", 4096, gated=False, batch=64, channels=256), CudaBackend()
    (way,) = kernel_times(of, backend, seed=3)["ways"]
    assert way["way"] == STAGES
    counts = {"filter": 256, "transform": 64 * 256}
    alone = sum(k["each_s"] * counts[k["of"]] for k in way["kernels"])
    whole = measure_row(of, backend, contenders=["fftgen"], seed=3, seconds=0.1)["contenders"]["fftgen"]
    assert 0.6 < alone / whole["median_s"] < 1.2
