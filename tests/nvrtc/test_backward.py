"""Ring 3 for all gradients by one pass: its kernels in the simulator, poisoned buffers, race checks on.

References are float64 autograd (tests/gradients.py); bounds are those of gradient_accuracy.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from all_gradients import ALL, judge, noise, run
from calls import built
from command_line import answer, why_not
from command_line import fftgen as command
from gradient_kernels import assert_nothing_spills, every_kind, in_turn, needless_barriers
from gradients import TORCH

import fftgen.planner.gradient_launch
from fftgen import emulate, filter_gradient
from fftgen.bundle import goes_back, open_shelf
from fftgen.conv import get_conv
from fftgen.errors import InternalError
from fftgen.gradient import Gradients, Needed
from fftgen.planner import search
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_launch import launches, parts
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.order import same_spectrum
from fftgen.prepare import prepare
from fftgen.problem import Problem

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

# Two transforms to a warp, and one; blocks that take both signals together, of two channels or of one, with
# all or a part of the sum in shared memory, and one after the other; the device stage.
COMMON = (256, 1024, 2048, 4096, 16_384, 65_536)
OTHERS = (512, 8192, 12_288, 20_480, 32_768, 131_072)


def slow(*values: Any) -> list[Any]:
    return [pytest.param(x, marks=pytest.mark.slow) for x in values]


def planned(length: int, dtype: str = "bf16", target: str = "sm_90") -> Gradient:
    found = backward(Problem("causal", length, dtype), target)
    assert found is not None
    return found


@pytest.mark.drawn(3)
@pytest.mark.parametrize("length", [1024, 2048, 16_384, *slow(256, 4096, 65_536, *OTHERS)])
@pytest.mark.parametrize("dtype", ["fp16", *slow("bf16")])
def test_powers_of_two(length: int, dtype: str, rng: np.random.Generator) -> None:
    shape = (5, 3, length) if length <= 4096 else (2, 1, length)
    run(planned(length, dtype), rng, shape, ("k_rev", "in_gate", "out_gate", "skip"))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("gates", [(), ("in_gate", "out_gate")], ids=["plain", "gated"])
@pytest.mark.parametrize("length", [1024, *slow(256, 2048, 4096, 8192, 16_384)])
def test_layouts_that_other_targets_take(
    length: int, gates: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Of every kind that fits."""
    found = every_kind(length, "bf16", "sm_80", rng, signals=True)
    ways = {False} if length <= 1024 else {True} if length == 2048 else {False, True}
    assert {x.together for x in found} == ways
    for layout in found:
        run(layout, rng, (3, 1, length - 8 * int(rng.integers(2))), gates)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", [17, 1025, 3000, 12_000, *slow(1, 2, 257, 1000, 20_000)])
def test_other_lengths(length: int, rng: np.random.Generator) -> None:
    """Shorter signals than the transform, in fp16, with fewer taps than steps, and with more."""
    found = planned(length, "fp16")
    assert found.plan.transform >= length
    steps = max(1, length - 3)
    for taps in (max(1, length // 3), length):
        run(found, rng, (3, 2, steps) if length < 10_000 else (1, 1, steps), taps=taps)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(1024, 65_536)])
@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
def test_what_is_wanted_and_no_more(
    length: int, needed: tuple[bool, bool, bool], rng: np.random.Generator
) -> None:
    """Results one by one and together, with gates that are there though nobody wants their gradient."""
    gates = tuple(
        name
        for name, need in zip(("in_gate", "out_gate"), needed[1:], strict=True)
        if need or rng.integers(2)
    )
    found = planned(length)
    _, simulated = run(found, rng, (3, 1, length), gates, Needed(*needed))
    stores = {n for r in simulated.reports.values() for n, b in r.counters.buffers.items() if b.stores.bytes}
    wanted = {n for n, need in zip(emulate.RESULTS, needed, strict=True) if need}
    assert stores & set(emulate.RESULTS) == wanted


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(1024, 20_480, 65_536)])
def test_rows_that_start_anywhere(length: int, rng: np.random.Generator) -> None:
    """Views that start off 16 bytes, of a ragged length."""
    for steps in (length - 5, length // 2 + 1):
        run(planned(length), rng, (3, 3, steps) if length <= 4096 else (1, 1, steps), off=1)


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(1024, 65_536)])
def test_workers_share_a_channel(
    length: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Uneven shares: 7 rows over 3 workers. Signals come out the same bits whoever makes them."""
    found = planned(length)
    shape = (7, 3, length) if length < 65_536 else (3, 1, length)
    dtype = TORCH[found.problem.dtype]
    given = gradients.draw(rng, shape, length, ("in_gate", "out_gate"), dtype)
    state = rng.bit_generator.state

    def again() -> Gradients:
        rng.bit_generator.state = state
        return run(found, rng, shape, given=given)[0]

    whole = again()
    monkeypatch.setattr(fftgen.planner.gradient_launch, "least_share", lambda _: 2 if length < 65_536 else 1)
    assert parts(found, *shape[:2]) == 3
    shared = again()
    assert (shared.filter - whole.filter).norm() <= 1e-5 * whole.filter.norm()
    for one, other in zip(shared[:3], whole[:3], strict=True):
        assert torch.equal(one, other)


def test_chunks_that_end_inside_a_channel(rng: np.random.Generator) -> None:
    """A workspace of two transforms: three rows of each channel go through it in pieces."""
    found = planned(22_000, target="sm_86")  # where 24 576 points take a device stage
    assert found.plan.device_stages
    plan = dataclasses.replace(found.plan, chunk_bytes=2 * 4 * found.plan.transform)
    found = dataclasses.replace(found, plan=plan)
    made = launches(found, 3, 2, 22_000)
    assert [x.launch.items for x in made if x.side < 0] == [2, 2, 2]
    assert sum(x.launch.kernel.role == "columns_inverse" for x in made) == 6
    run(found, rng, (3, 2, 22_000))


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(65_536)])
def test_scales_of_rows_stay_apart(length: int, rng: np.random.Generator) -> None:
    """Rows of 1e-20, of 1e30 and of zeros in one batch: each as exact as if it were alone."""
    found = planned(length)
    given = gradients.draw(rng, (3, 2, length), length, ("in_gate", "out_gate"), torch.float32)
    scale = torch.tensor([1e-10, 1.0, 1e15])[:, None, None]
    given = {n: (x.detach() * scale if n == "u" else x.detach()) for n, x in given.items()}
    given = {n: x.bfloat16() if n not in ("k",) else x for n, x in given.items()}
    run(found, rng, (3, 2, length), given=given)


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(65_536)])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_belongs(length: int, bad: float, rng: np.random.Generator) -> None:
    """A bad cotangent spoils du and d in_gate of its row and dk of its channel; a bad u d out_gate and dk."""
    found = planned(length)
    module, ptx = built(found)
    given = gradients.draw(rng, (3, 2, length), length, ("in_gate", "out_gate"), torch.bfloat16)
    u, k, in_gate, out_gate = (x.detach() for x in given.values())
    v = noise(rng, 3, 2, length).bfloat16()
    clean, _ = emulate.backward(
        module, u, v, k, needed=ALL, taps=length, in_gate=in_gate, out_gate=out_gate, ptx=ptx
    )
    v[1, 0, 7] = bad
    made, _ = emulate.backward(
        module, u, v, k, needed=ALL, taps=length, in_gate=in_gate, out_gate=out_gate, ptx=ptx
    )
    for out, whole in zip(made[:2], clean[:2], strict=True):
        assert out is not None
        assert whole is not None
        assert not out[1, 0].isfinite().any()
        others = torch.ones(3, 2, dtype=torch.bool)
        others[1, 0] = False
        assert torch.equal(out[others], whole[others])
    assert made.out_gate is not None
    assert clean.out_gate is not None
    differs = made.out_gate != clean.out_gate
    assert differs[1, 0, 7]
    assert differs.sum() == 1  # v is its gate there, and nowhere else
    assert not made.filter[0].isfinite().any()
    assert torch.equal(made.filter[1], clean.filter[1])


@pytest.mark.drawn(3)
@pytest.mark.parametrize("target", ["sm_80", "sm_120", *slow("sm_86", "sm_89", "sm_100", "compute_80")])
@pytest.mark.parametrize("length", [256, 2048, 4096, *slow(1024, 16_384, 65_536)])
def test_every_target(target: str, length: int, rng: np.random.Generator) -> None:
    run(planned(length, "fp16", target), rng, (2, 1, length))


def test_problems_without_such_kernels() -> None:
    """Circles, targets before sm_80, and convolutions of an engine with another order of spectra."""
    assert backward(Problem("circular", 4096, "bf16"), "sm_90") is None
    assert backward(Problem("causal", 4096, "fp16"), "sm_75") is None
    problem = Problem("causal", 4096, "bf16")
    found = backward(problem, "sm_90")
    assert found is not None
    assert same_spectrum(search.plan(problem, "sm_90"), found.plan)
    assert not same_spectrum(search.plan(problem, "sm_90", "wmma"), found.plan)
    assert goes_back(problem, search.find_target("sm_90"))
    assert not goes_back(problem, search.find_target("sm_90"), "wmma")
    alone = built(gradient(problem, "sm_90"))[0]
    x = torch.zeros(1, 1, 8).bfloat16()
    with pytest.raises(InternalError, match="makes the gradient of a filter only"):
        emulate.backward(alone, x, x, x[0].float(), needed=ALL, taps=8)
    said = command("render", "4096", "--arch", "sm_90", "--backward")
    assert said.exit_code == 2
    assert "--gradient renders those of the filter's" in said.stderr
    assert "ask for one of them" in command("render", "64", "--causal", "--backward", "--gradient").stderr


def test_a_name_a_digest_and_a_text_of_its_own() -> None:
    found, alone = planned(4096), gradient(Problem("causal", 4096, "bf16"), "sm_90")
    assert found.name.startswith("fftgen_backward_n4096_bf16_")
    assert str(found).startswith("backward 4096 bf16 sm_90")
    assert found.digest != alone.digest
    assert Gradient.from_json(found.to_json()) == found
    assert Gradient.from_json(alone.to_json()) == alone
    assert "signals" not in alone.to_json()


# Bytes of a thread: numbers of the transform, and of its worker, that wait from one phase to the next.
FEW_SPILLED = {
    (16_384, "sm_80"): 20,
    (16_384, "sm_90"): 68,
    (20_000, "sm_80"): 8,
    (20_000, "sm_90"): 72,
    (32_768, "sm_80"): 12,
    (32_768, "sm_90"): 32,
    (2_097_152, "sm_80"): 8,
    (2_097_152, "sm_90"): 20,
}


@pytest.mark.drawn(5)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "length",
    [4096, 32_768, 1_048_576, *slow(256, 512, 1024, 2048, 8192, 12_000, 16_384, 20_000, 65_536, 2_097_152)],
)
def test_no_kernel_spills(target: str, length: int) -> None:
    assert_nothing_spills(planned(length, target=target), target, FEW_SPILLED.get((length, target), 0))


@pytest.mark.drawn(5)
@pytest.mark.parametrize("length", COMMON)
def test_counts(length: int, rng: np.random.Generator) -> None:
    """Matrix operations are the least possible; of every tensor every byte is moved once; no bank conflicts.

    The gates of results are read where their rows were brought before: from the L2; X's, which is V, stays in
    a warp's shared memory.
    """
    found = planned(length)
    batch = (4 if length < 65_536 else 1) * found.plan.abreast
    made, simulated = run(found, rng, (batch // found.plan.abreast, found.plan.abreast, length))
    reports = list(simulated.reports.values())
    assert sum(sum(r.counters.tensor.values()) for r in reports) == 2 * found.tensor_ops * batch
    counters = simulated.reports[found.name].counters
    assert counters.shared_wavefronts <= 1.05 * counters.shared_wavefronts_least
    sums = counters.buffers["sums"]
    assert (sums.loads.units, sums.stores.units) == (sums.loads.least, sums.stores.least)
    assert made.u is not None
    nbytes = made.u.numel() * made.u.element_size()
    for name in ("u", "v_u", "in_gate", "v_in_gate"):
        loads = [r.counters.buffers[name].loads for r in reports if name in r.counters.buffers]
        assert sum(x.bytes for x in loads) == nbytes
        assert sum(x.units for x in loads) == sum(x.least for x in loads)
    for name in emulate.RESULTS:
        gate = "v_gate" if name == "d_out_gate" else f"{name}_gate"
        for what, buffer in (("stores", name), ("loads", gate)):
            if buffer == "v_gate" and found.kernel.brought:
                continue
            moved = [
                getattr(r.counters.buffers[buffer], what) for r in reports if buffer in r.counters.buffers
            ]
            assert sum(x.bytes for x in moved) == nbytes, (name, what)
            assert sum(x.units for x in moved) == sum(x.least for x in moved)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("length", "by_turns"),
    [
        *((256, False), (4096, False)),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in ((2048, False), (12_288, False), (256, True), (4096, True))
        ),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in itertools.product((1024, 65_536), (False, True))),
    ],
)
def test_no_barrier_can_be_dropped(length: int, by_turns: bool, rng: np.random.Generator) -> None:
    """Every barrier of the pass's own kernel is needed, and its absence is seen."""
    found = in_turn(length, "bf16", "sm_90", signals=True) if by_turns else planned(length)
    rows = 6 if length <= 1024 else 2  # two turns of a worker at least

    def judge(ptx: str) -> None:
        for steps, needed in ((length, ALL), (length - 3, Needed(out_gate=True))):
            run(found, rng, (rows, found.plan.abreast, steps), needed=needed, ptx=ptx)

    assert needless_barriers(found, judge) == []


@pytest.mark.parametrize("circular", [False, True], ids=["causal", "padded circle"])
def test_a_backward_pass_takes_these_kernels(
    circular: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a call on a GPU, with the simulator for the driver, to the leaves' gradients."""
    steps, length = 200, 512 if circular else 256
    conv = get_conv(length, causal=not circular)
    found = planned(256)
    module, ptx = built(found)
    simulated = emulate.Simulated(ptx, module.source.text)
    plan = search.plan(Problem("causal", 256, "bf16"), "sm_90")
    spectra: list[Any] = []

    class Loaded:
        def spectrum(self, k: Any, k_rev: Any, skip: Any) -> Any:
            whole, text = built(plan)
            own = emulate.Simulated(text, whole.source.text)
            tables = torch.frombuffer(bytearray(whole.tables), dtype=torch.uint8)
            spectra.append(prepare(plan, tables, own, k, k_rev, skip, address=own.address))
            return spectra[-1]

    loaded = SimpleNamespace(
        gradient=found,
        tables=torch.frombuffer(bytearray(module.tables), dtype=torch.uint8),
        module=SimpleNamespace(on=lambda _: simulated),
    )
    asked: list[Problem] = []
    monkeypatch.setattr(conv, "backward_on", lambda _, problem: asked.append(problem) or loaded)
    monkeypatch.setattr(conv, "on", lambda *_: Loaded())
    monkeypatch.setattr(filter_gradient, "stream_of", lambda _: 0)
    by_address = filter_gradient.backward

    def addressed(*args: Any, **named: Any) -> Gradients:
        return by_address(*args, **named, address=simulated.address)

    monkeypatch.setattr(filter_gradient, "backward", addressed)
    options = ("k_rev", "in_gate", "out_gate", "skip")
    given = gradients.draw(rng, (3, 2, steps), 256 if circular else steps, options, torch.bfloat16)
    v = noise(rng, 3, 2, steps).bfloat16()
    arguments = tuple(given[n].detach() if n in given else None for n in gradients.NAMES)
    made = filter_gradient.all_on_gpu(conv, arguments, v, ALL, given["k"].shape[-1])
    assert made is not None
    assert asked == [Problem("causal", 256, "bf16")]
    assert len(spectra) == 1
    judge(found, made, given, v)
    # With the spectrum that the call itself made, nothing is transformed again.
    simulated = emulate.Simulated(ptx, module.source.text)
    kept = spectra[0].planes, spectra[0].scale
    again = filter_gradient.all_on_gpu(conv, arguments, v, ALL, given["k"].shape[-1], kept)
    assert len(spectra) == 1
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    # Where there are none, and where a circle is a circle, others do it.
    monkeypatch.setattr(conv, "backward_on", lambda *_: None)
    assert filter_gradient.all_on_gpu(conv, arguments, v, ALL, 100) is None
    circle = get_conv(300)
    assert filter_gradient.all_on_gpu(circle, arguments, v, ALL, given["k"].shape[-1]) is None
    nothing = tuple(x if x is None or x.dim() < 3 else x[:0] for x in arguments)
    assert filter_gradient.all_on_gpu(conv, nothing, v[:0], ALL, 100) is None


@pytest.mark.slow
def test_an_artifact_carries_it(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "train.fftgen"
    arch = ("--arch", "sm_90")
    answer("build", "--seqlen", "250", "--causal", *arch, "--train", "-o", path)
    problem = Problem("causal", 250, "bf16")
    shelf = open_shelf(path)
    module = shelf.backward(problem, (9, 0))
    assert module is not None
    assert module.gradient == planned(250)
    assert shelf.backward(Problem("causal", 999, "bf16"), (9, 0)) is None
    document = answer("verify", path, "--quick")
    assert sum("_backward_" in m["name"] and m["passed"] for m in document["modules"]) == 1
    # Kernels that read other spectra than the convolution's are not taken.
    other = tmp_path / "wmma.fftgen"
    answer("build", "--seqlen", "250", "--causal", *arch, "--engine", "wmma", "--train", "-o", other)
    assert open_shelf(other).backward(problem, (9, 0)) is None
    text = answer("render", "250", "--causal", *arch, "--backward")
    assert text["name"] == f"{planned(250).name}.cu"
    assert text["command"].endswith("--backward")
