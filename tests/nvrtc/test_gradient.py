"""Ring 3 for the gradient of a filter: its kernels in the simulator, poisoned buffers, race checks on.

References are float64; a bound is 1.5 times the rounding model of gradient_accuracy.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from calls import built
from command_line import answer, why_not
from gradient_kernels import assert_nothing_spills, every_kind, in_turn, needless_barriers
from gradients import TORCH
from torch import Tensor

import fftgen.planner.gradient_launch
from fftgen import eager, emulate, gradient_accuracy
from fftgen.bundle import open_shelf
from fftgen.errors import NoPlanError
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_launch import launches, parts
from fftgen.planner.gradient_plan import Gradient
from fftgen.problem import Problem
from fftgen.verify import verify_built

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

# Each another path: two transforms to a warp, one; blocks that take both signals together, of two channels or
# of one, with all or a part of the sum in shared memory, and in turn; blocks behind a device stage.
OTHERS = (("causal", "fp16"), ("circular", "bf16"))
COMMON = (256, 1024, 2048, 4096, 65_536)
PATHS = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)


def slow(cases: Iterable[tuple[object, ...]]) -> list[Any]:
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def planned(length: int, dtype: str = "bf16", target: str = "sm_90") -> Gradient:
    return gradient(Problem("causal", length, dtype), target)


def draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape))


def exact(mode: str, length: int, taps: int, u: Tensor, v: Tensor, a: Any, b: Any) -> Tensor:
    """float64, by the definition of the operator (held to autograd in tests/cpu/test_operators.py)."""
    wide = [None if x is None else x.double() for x in (u, v, a, b)]
    return eager.correlate_input(
        wide[0], wide[1], mode=mode, length=length, taps=taps, in_gate=wide[2], out_gate=wide[3]
    )


def run(
    found: Gradient,
    rng: np.random.Generator,
    u: Tensor,
    v: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    mode: str = "causal",
    length: int = 0,
    taps: int = 0,
    ptx: str | None = None,
) -> Tensor:
    """The kernels' gradient, judged."""
    length = length or found.problem.length
    taps = taps or length
    module, text = built(found)
    dk, _ = emulate.gradient(
        module,
        u,
        v,
        taps=taps,
        in_gate=a,
        out_gate=b,
        period=length if mode == "circular" else 0,
        ptx=ptx or text,
        seed=int(rng.integers(2**31)),
    )
    assert (dk.shape, dk.dtype) == ((u.shape[1], taps), torch.float32)
    ref = exact(mode, length, taps, u, v, a, b)
    reach = min(taps, u.shape[-1]) if mode == "causal" else taps
    assert (dk[:, reach:] == 0).all()
    expected = gradient_accuracy.filters(found.problem.dtype, found.plan.order, found.plan.compute_format)
    gradients.judge(dk[:, :reach], ref[:, :reach], expected)
    return dk


def signals(
    rng: np.random.Generator, dtype: str, shape: tuple[int, int, int], gates: int = 0
) -> tuple[Any, ...]:
    """u, v and gates; ``gates`` counts in binary: 1 in_gate, 2 out_gate."""
    made = [draw(rng, *shape).to(TORCH[dtype]) for _ in range(4)]
    return made[0], made[1], made[2] if gates & 1 else None, made[3] if gates & 2 else None


@pytest.mark.drawn(5)
@pytest.mark.parametrize("length", [*COMMON, *slow((n,) for n in PATHS if n not in COMMON)])
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("causal", "bf16"), ("circular", "fp16"), *(pytest.param(*x, marks=pytest.mark.slow) for x in OTHERS)],
)
def test_powers_of_two(length: int, mode: str, dtype: str, rng: np.random.Generator) -> None:
    small = length <= 8192
    shape = (5 if small else 2, 3 if small else 1, length)
    gates = int(rng.integers(4)) if dtype == "fp16" else 3
    run(planned(length, dtype), rng, *signals(rng, dtype, shape, gates), mode=mode)


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("length", "mode"),
    [
        *((n, "circular") for n in (1, 250, 1500, 5003)),
        *((n, "causal") for n in (17, 3000, 12_000)),
        *slow((n, m) for n in (2, 257, 1000, 1025, 20_000) for m in ("causal", "circular")),
    ],
)
def test_other_lengths(length: int, mode: str, rng: np.random.Generator) -> None:
    """A circular length needs no transform of its own; several with warps that pad, or shorter signals."""
    shape = (3 if length < 10_000 else 2, 2 if length < 10_000 else 1, length)
    found = planned(length)
    assert found.plan.transform >= length
    run(found, rng, *signals(rng, "bf16", shape, 3), mode=mode, taps=max(1, length - 3))


@pytest.mark.parametrize("length", [1024, *slow([(256,), (2048,), (4096,), (8192,), (16_384,)])])
def test_layouts_that_other_targets_take(length: int, rng: np.random.Generator) -> None:
    """Of every kind that fits; parts of a sum where rows of the chain are longer than 256 points."""
    found = every_kind(length, "bf16", "sm_80", rng, signals=False)
    kinds = {(x.together, x.held) for x in found}
    if length == 2048:
        assert kinds == {(True, 1)}
    else:
        assert {x for x, _ in kinds} == ({False} if length <= 1024 else {False, True})
        assert {0, 1} - {held for _, held in kinds} <= ({1} if length == 16_384 else set())
        assert any(0 < held < 1 for _, held in kinds) == (length not in (256, 4096))
    for layout in found:
        run(layout, rng, *signals(rng, "bf16", (3, 1, length - 8 * int(rng.integers(2))), 3))


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", [256, 2048, 4096, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("gates", range(4))
def test_gates_and_rows_that_start_anywhere(length: int, gates: int, rng: np.random.Generator) -> None:
    """A view that starts off 16 bytes, a ragged length, fewer taps than steps, and more."""
    found = planned(length)
    for steps, taps in ((length - 5, length // 3), (length // 2 + 1, length)):
        given = signals(rng, "bf16", (3, 3, steps + 1), gates)
        run(found, rng, *(x if x is None else x[..., 1:] for x in given), taps=taps)


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow([(1024,), (65_536,)])])
def test_workers_share_a_channel(
    length: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Uneven shares: 7 rows over 3 workers, of 3, 3 and 1."""
    found = planned(length)
    shape = (7 if length < 65_536 else 3, 2 if length < 65_536 else 1, length)
    given = signals(rng, "bf16", shape)
    whole = run(found, rng, *given)
    monkeypatch.setattr(fftgen.planner.gradient_launch, "least_share", lambda _: 2 if length < 65_536 else 1)
    assert parts(found, *shape[:2]) == 3
    shared = run(found, rng, *given)
    assert (shared - whole).norm() <= 1e-5 * whole.norm()
    assert torch.equal(run(found, rng, *given), shared)  # no atomics: the same bits


@pytest.mark.slow
@pytest.mark.parametrize("length", [2_097_152, 4_194_304])
def test_the_longest_rows_keep_the_bound(length: int, rng: np.random.Generator) -> None:
    """What four stages lose (gradient_accuracy.py) is nearly all that is allowed there."""
    found = verify_built(built(planned(length))[0], quick=True, seed=int(rng.integers(2**31)))
    assert found.passed, str(found)


@pytest.mark.parametrize("length", [22_000, *slow([(65_536,)])])
def test_chunks_that_end_inside_a_channel(length: int, rng: np.random.Generator) -> None:
    """A workspace of two transforms: three rows of each channel go through it in pieces."""
    found = planned(length, target="sm_86")  # where 24 576 points take a device stage
    assert found.plan.device_stages
    plan = dataclasses.replace(found.plan, chunk_bytes=2 * 4 * found.plan.transform)
    found = dataclasses.replace(found, plan=plan)
    made = launches(found, 3, 2, length)
    assert [x.launch.items for x in made if x.side < 0] == [2, 2, 2]
    run(found, rng, *signals(rng, "bf16", (3, 2, length), 3))


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow([(65_536,)])])
def test_scales(length: int, rng: np.random.Generator) -> None:
    """Rows of 1e-20 against 1e30, heavy tails, a mean of 100, spikes: each channel has one of them.

    Noise is in proportion to the norms of u and v, so these are made to meet within the lags.
    """
    found = planned(length)
    u, v, _, _ = signals(rng, "bf16", (2, 5, length))
    u, v = u.float(), v.float()
    u[:, 0] *= 1e-20
    v[:, 0] *= 1e30
    early = length // 4  # a large one near the end would meet few lags
    u[:, 1, :early] *= torch.exp(3 * draw(rng, 2, early)).float()
    u[:, 2] += 100
    v[:, 2] += 1
    v[:, 3, -1] = 1e4
    u[1, 4] = 0
    run(found, rng, u.bfloat16(), v.bfloat16())


@pytest.mark.parametrize("length", [256, 2048, 4096, *slow([(65_536,)])])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_channel(length: int, bad: float, rng: np.random.Generator) -> None:
    found = planned(length)
    u, v, _, _ = signals(rng, "bf16", (3, 2, length))
    v[1, 0, 7] = bad
    module, ptx = built(found)
    dk, _ = emulate.gradient(module, u, v, taps=length, ptx=ptx)
    assert not dk[0].isfinite().any()
    ref = exact("causal", length, length, u[:, 1:], v[:, 1:], None, None)
    gradients.judge(dk[1:], ref, gradient_accuracy.filters("bf16", 3, "scaled-fp16"))


@pytest.mark.drawn(5)
@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_100", "sm_120", "compute_80"])
@pytest.mark.parametrize(
    "length", [256, 4096, *(pytest.param(n, marks=pytest.mark.slow) for n in (1024, 16_384))]
)
def test_every_target(target: str, length: int, rng: np.random.Generator) -> None:
    run(planned(length, "fp16", target), rng, *signals(rng, "fp16", (2, 1, length), 3))


def test_targets_without_the_instructions() -> None:
    with pytest.raises(
        NoPlanError, match=r"gradient of a filter of length 4096 fp16 on sm_75: sm_75 lacks mma"
    ):
        planned(4096, "fp16", "sm_75")


@pytest.mark.drawn(5)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    "length",
    [
        256,
        1024,
        4096,
        16_384,
        65_536,
        1_048_576,
        *slow((n,) for n in (512, 2048, 8192, 12_000, 20_000, 32_768, 2_097_152)),
    ],
)
def test_no_kernel_spills(target: str, length: int) -> None:
    # Twelve warps instead of eight; rows of 32 · 32 · 32 points by halves; no loop over rows.
    few = {(16_384, "sm_80"): 8, (32_768, "sm_90"): 32}
    few[2_097_152, "sm_90"] = 32
    assert_nothing_spills(planned(length, target=target), target, few.get((length, target), 0))


@pytest.mark.drawn(4)
@pytest.mark.parametrize("length", [256, 1024, 4096, 16_384, 65_536])
def test_counts(length: int, rng: np.random.Generator) -> None:
    """Matrix operations and bytes of signals are the least possible; shared memory is free of conflicts."""
    found = planned(length)
    module, ptx = built(found)
    batch = 4
    u, v, _, _ = signals(rng, "bf16", (batch, 1, length))
    _, simulated = emulate.gradient(module, u, v, taps=length, ptx=ptx)
    reports = list(simulated.reports.values())
    assert sum(sum(r.counters.tensor.values()) for r in reports) == 2 * found.tensor_ops * batch
    report = simulated.reports[found.name]
    assert report.counters.shared_wavefronts <= 1.05 * report.counters.shared_wavefronts_least
    for name in ("u", "v_u"):
        loads = [r.counters.buffers[name].loads for r in reports if name in r.counters.buffers]
        assert sum(x.bytes for x in loads) == u.nbytes
        assert sum(x.units for x in loads) == sum(x.least for x in loads)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("length", "by_turns"),
    [(256, False), (4096, False), (4096, True), *slow([(1024, False), (65_536, False)])],
)
def test_no_barrier_can_be_dropped(length: int, by_turns: bool, rng: np.random.Generator) -> None:
    """Every barrier of the gradient's own kernel is needed, and its absence is seen."""
    found = in_turn(length, "bf16", "sm_90", signals=False) if by_turns else planned(length)
    rows = 6 if length < 65_536 else 2
    cases = [signals(rng, "bf16", (rows, 1, steps), 3) for steps in (length, length - 3)]

    def judge(ptx: str) -> None:
        for given in cases:
            run(found, rng, *given, ptx=ptx)

    assert needless_barriers(found, judge) == []


def test_an_artifact_that_trains(tmp_path: Path, rng: np.random.Generator) -> None:
    """``--train``: the gradient's kernels beside the convolution's, found by length, and run."""
    path = tmp_path / "train.fftgen"
    arch = ("--arch", "sm_90")
    built_ = answer("build", "--seqlen", "500", *arch, "--train", "-o", path)
    names = [m["name"] for m in built_["files"][0]["modules"]]
    kinds = [n.split("_")[1] for n in names]
    assert kinds == ["conv", "conv", "twin", "twin", "gradient", "gradient", "backward"]
    shelf = open_shelf(path)
    assert {p.mode for p in shelf.problems} == {"circular", "causal"}
    for problem in shelf.problems:
        module = shelf.gradient(problem, (9, 0))
        assert module is not None
        assert module.gradient is not None
        assert module.gradient == planned(problem.length)
        u, v, _, _ = signals(rng, "bf16", (2, 1, problem.length))
        dk, _ = emulate.gradient(module, u, v, taps=problem.length)
        ref = exact("causal", problem.length, problem.length, u, v, None, None)
        gradients.judge(dk, ref, gradient_accuracy.filters("bf16", 2, "scaled-fp16"))
    assert shelf.gradient(Problem("causal", 999, "bf16"), (9, 0)) is None
    assert [m["name"] for m in answer("inspect", path)["modules"]] == names
    plain = tmp_path / "plain.fftgen"
    answer("build", "--seqlen", "500", *arch, "-o", plain)
    assert open_shelf(plain).gradient(Problem("circular", 500, "bf16"), (9, 0)) is None
    text = answer("render", "500", *arch, "--gradient")
    assert text["name"] == f"{planned(500).name}.cu"
    assert text["command"].endswith("--gradient")
