"""Plans of signals in fp32: lengths, stages, the order of spectra, what they mean and what they refuse."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
import reference
import tolerance
import torch
from cases import EVEN, LARGE, MODES, ODD, TINY

import fftgen
from fftgen.errors import InputError, NoPlanError
from fftgen.planner import engines, interpret, search, simt
from fftgen.planner.filter_design import without_conflicts
from fftgen.planner.gradient import gradient
from fftgen.planner.launch import launches, workspace_elements
from fftgen.planner.order import same_spectrum, spectrum_digits, spectrum_index, sum_index
from fftgen.planner.plan import SIMT, Plan
from fftgen.planner.twins import twin
from fftgen.problem import MAX_LENGTH, Problem
from fftgen.targets import TARGETS, target


def plan_for(mode: str, length: int, name: str = "sm_90") -> Plan:
    return search.plan(Problem(mode, length, "fp32"), name)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("length", [1, 256, 1009, 4096, 9000, 20_480, 65_536, 100_003, 1_000_003, MAX_LENGTH])
@pytest.mark.parametrize("mode", MODES)
def test_every_length_has_a_plan_on_every_target(mode: str, length: int, name: str) -> None:
    plan, chip = plan_for(mode, length, name), target(name)
    assert plan.engine == SIMT
    assert plan.real_input
    assert plan.fold == (0 if mode == "causal" else length)
    assert length <= plan.transform <= 2 * max(length, 128)
    assert prod(plan.factors) == plan.transform
    assert max(plan.factors) <= 16
    assert [k.role for k in plan.kernels] == (
        ["columns", "rows", "columns_inverse"] if plan.device_stages else ["convolve"]
    )
    for kernel in plan.kernels:
        assert kernel.shared_bytes <= chip.shared_block
        assert 32 <= 32 * kernel.warps <= 1024
        assert kernel.resident >= 1
    assert Plan.from_json(plan.to_json()) == plan
    for launch in launches(plan, 3, 2, length):
        assert launch.run == 1
    # Complex fp32 of every transform that is under way, in numbers of four bytes.
    assert workspace_elements(plan, 3, 2) in (
        (2 * plan.transform * n for n in range(1, 7)) if plan.device_stages else (0,)
    )


def test_lengths_are_those_with_the_least_to_do() -> None:
    assert simt.lengths(Problem("causal", 4096, "fp32"), 1) == (4096,)
    assert simt.lengths(Problem("causal", 1, "fp32"), 9) == (256,)
    for length in (257, 1000, 5003, 70_001, 3_000_017):
        found = simt.lengths(Problem("circular", length, "fp32"), 3)
        assert all(length <= n <= 1.35 * length for n in found)
        for n in found:
            for prime in (2, 3, 5, 7):
                while n % prime == 0:
                    n //= prime
            assert n == 1


def test_neighbouring_lengths_share_a_transform() -> None:
    """What ``fftconv`` takes for them all."""
    nearest = {search.nearest_transform(Problem("causal", n, "fp32")) for n in range(990, 1025)}
    assert nearest == {1024}
    assert plan_for("causal", 1024).transform == 1024


@pytest.mark.parametrize("chosen", [(16, 16), (16, 8, 8), (8, 8, 5), (16, 16, 16, 5), (4,), (16, 3, 7, 7)])
def test_the_longest_radix_is_the_last(chosen: tuple[int, ...]) -> None:
    found = without_conflicts(chosen)
    assert sorted(found) == sorted(chosen)
    assert found[-1] == max(chosen)


@pytest.mark.parametrize("length", [256, 1000, 5003, 20_480, 65_536, 100_003])
def test_spectra_hold_every_number_once(length: int) -> None:
    plan = plan_for("causal", length)
    index = spectrum_index(plan)
    assert np.array_equal(np.sort(index), np.arange(2 * plan.transform))
    assert np.array_equal(index[1::2], index[::2] + 1)  # both parts side by side
    # A thread has the frequencies of its last DFT, neighbouring threads those beside them.
    inner = plan.row_length // plan.factors[-1]
    step = plan.transform // plan.factors[-1]
    assert (np.diff(index[:: 2 * inner][: plan.factors[-1]]) == 2 * step).all()
    assert spectrum_digits(plan)[-1] == (2, 1)


@pytest.mark.parametrize("length", [*TINY, *EVEN, *ODD, *LARGE])
@pytest.mark.parametrize("mode", MODES)
def test_a_plan_means_the_convolution(mode: str, length: int, rng: np.random.Generator) -> None:
    """Exactly, and in the arithmetic of the kernels, but for their quick DFTs."""
    plan = plan_for(mode, length)
    u = reference.stored(rng.standard_normal((2, 1, length)), "fp32")
    gate = reference.stored(rng.standard_normal((2, 1, length)), "fp32")
    k = rng.standard_normal((1, length)) * np.exp(-8 * np.arange(length) / length)
    options = {"in_gate": gate, "out_gate": gate, "skip": np.copysign(0.7, k[:, 0])}
    exact = reference.convolve(u, k, mode=mode, length=length, **options)
    meant = interpret.convolve(plan, u, k, **options, rounded=False)
    assert np.linalg.norm(meant - exact) < 1e-13 * np.linalg.norm(exact)
    rounded = interpret.convolve(plan, u, k, **options)
    assert not np.array_equal(rounded, meant)
    tolerance.check(rounded, exact, "fp32", plan.order)


def test_engines_and_types_that_do_not_go_together() -> None:
    with pytest.raises(NoPlanError, match=r"the engine 'mma' takes no fp32 signals \('simt' would\)"):
        search.plan(Problem("causal", 256, "fp32"), "sm_90", "mma")
    with pytest.raises(
        NoPlanError, match=r"the engine 'simt' takes no bf16 signals \('mma' and 'wmma' would\)"
    ):
        search.plan(Problem("causal", 256, "bf16"), "sm_90", "simt")
    one, other = (search.plan(Problem("causal", 256, "fp32"), "sm_90", e) for e in (None, "simt"))
    assert one is other or one == other
    assert engines.named_engine(one) == "simt"
    for engine in ("simt:bf16-fp32", "mma:fp32", "simt:"):
        with pytest.raises(InputError, match="is not known"):
            engines.parse_engine(engine)
    assert engines.parse_engine("simt:fp32") == ("simt", "fp32")


def test_gradients_of_signals_take_two_results() -> None:
    problem = Problem("causal", 4096, "fp32")
    both = twin(search.plan(problem, "sm_90"))
    assert both is not None
    assert both.outputs == 2
    assert same_spectrum(both, search.plan(problem, "sm_90"))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("length", [1, 1009, 8000, 9000, 16_384, 70_001, MAX_LENGTH])
def test_every_length_has_a_gradient(length: int, name: str) -> None:
    """A thread has one DFT of a row's last stage, and two rows fit shared memory."""
    found = gradient(Problem("causal", length, "fp32"), name)
    plan, kernel = found.plan, found.kernel
    assert plan.transform >= length
    assert plan.row_length <= 512 * plan.factors[-1]
    assert 32 * kernel.warps >= kernel.group * plan.row_length // plan.factors[-1]
    assert kernel.shared_bytes == 2 * 8 * kernel.group * kernel.pitch <= target(name).shared_block
    assert kernel.resident >= 1
    index = sum_index(plan)
    assert np.array_equal(np.sort(index), np.arange(2 * plan.transform))


def test_types_have_names_of_their_own() -> None:
    assert (
        fftgen.get_conv(300, "float32") is fftgen.get_conv(300, torch.float32) is fftgen.get_conv(300, "fp32")
    )
    assert fftgen.get_conv(300, torch.float32).handle == "circular-300-fp32"
    assert fftgen.plan(300, torch.float32).name.startswith("fftgen_conv_n300_circular_fp32_simt_sm90_")


def test_calls_on_a_cpu(rng: np.random.Generator) -> None:
    conv = fftgen.get_conv(100, torch.float32, causal=True)
    u, k = (torch.from_numpy(rng.standard_normal(shape)).float() for shape in ((2, 3, 80), (3, 80)))
    u.requires_grad_(), k.requires_grad_()
    y = conv(u, k, in_gate=u, out_gate=u, skip=torch.ones(3))
    x = u.detach().double().numpy()
    exact = reference.convolve(
        x, k.detach().double().numpy(), mode="causal", length=100, in_gate=x, out_gate=x, skip=np.ones(3)
    )
    assert y.dtype == torch.float32
    assert np.linalg.norm(y.detach().numpy() - exact) < 1e-6 * np.linalg.norm(exact)
    assert torch.equal(fftgen.fftconv(u, k, in_gate=u, out_gate=u, skip=torch.ones(3)), y)
    y.square().sum().backward()
    assert u.grad is not None
    assert k.grad is not None
    assert torch.autograd.gradcheck(
        lambda a, b: conv(a, b, in_gate=a),
        (u.detach().double().requires_grad_(), k.detach().double().requires_grad_()),
    )
    with pytest.raises(
        InputError, match=r"u is torch\.bfloat16, this convolution was made for torch\.float32"
    ):
        conv(u.bfloat16(), k)
