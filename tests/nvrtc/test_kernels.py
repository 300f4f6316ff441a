"""Ring 3: the PTX that NVRTC makes of the "wmma" engine's sources, run in the simulator, against float64.

Every call goes the way of a call on a GPU (launches, argument blocks, tables, spectrum, workspace), with
poisoned outputs, race and initialisation checks on. References come from tests/reference.py.
"""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
import torch
from calls import built, call, draw, filters, run
from cases import slow, usually
from hard_signals import every_pair, judge_rows_alone
from plans import on_engine

from fftgen import sampled
from fftgen.launch import ARGS_BYTES
from fftgen.planner import search
from fftgen.planner.cost import tensor_ops
from fftgen.planner.plan import SCALED, Plan
from fftgen.problem import Problem


def plan_for(mode: str, length: int, dtype: str, target: str = "sm_90") -> Plan:
    return on_engine(Problem(mode, length, dtype), target, "wmma")


POWERS = [2**e for e in range(8, 16)]


EVERY = list(itertools.product(POWERS, ("causal", "circular"), ("bf16", "fp16")))
# Every length in one mode and in one type, both modes and both types among them.
USUAL = [
    *zip(POWERS, itertools.cycle(("causal", "circular")), itertools.cycle(("bf16", "bf16", "fp16", "fp16"))),
    *zip(POWERS, itertools.cycle(("circular", "causal")), itertools.cycle(("bf16", "fp16", "fp16", "bf16"))),
]


@pytest.mark.drawn(5)
@pytest.mark.parametrize(("length", "mode", "dtype"), usually(EVERY, USUAL))
def test_powers_of_two(mode: str, length: int, dtype: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, dtype)
    assert plan.memory_class == "block"
    batch = 1 if length > 8192 else 3
    run(plan, rng, batch=batch, channels=1 if length > 8192 else 2)


OTHERS = (1, 2, 17, 100, 257, 1000, 1026, 5000, 5120, 12_288, 20_000, 20_480)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("length", usually(OTHERS, (1, 257, 5000, 12_288)))
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_other_lengths(mode: str, length: int, rng: np.random.Generator) -> None:
    run(plan_for(mode, length, "bf16"), rng, batch=2 if length < 10_000 else 1)


OPTIONS = [c for n in range(4) for c in itertools.combinations(("in_gate", "out_gate", "skip"), n)]


@pytest.mark.drawn(5)
@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("length", [512, 4096])
def test_every_combination_of_options(
    mode: str, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    run(plan_for(mode, length, "bf16"), rng, batch=3, options=options)


@pytest.mark.drawn(5)
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(("mode", "length"), [("causal", 256), ("circular", 256), ("circular", 4096)])
def test_odd_batches_and_channels(
    mode: str, length: int, batch: int, channels: int, rng: np.random.Generator
) -> None:
    run(plan_for(mode, length, "fp16"), rng, batch=batch, channels=channels, options=("in_gate",))


@pytest.mark.parametrize(
    ("length", "taps"), [(4096, 1), (4096, 100), (2049, 4096), (1, 4096), (7, 9), (4095, 33)]
)
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_short_inputs_and_filters(mode: str, length: int, taps: int, rng: np.random.Generator) -> None:
    """Rows that are zero are skipped, ragged ends are neither read nor written."""
    run(plan_for(mode, 4096, "bf16"), rng, batch=2, length=length, taps=taps, options=("in_gate", "out_gate"))


TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_100", "sm_120", "compute_80")
PROBLEMS = (("causal", 16_384), ("circular", 8192), ("circular", 1009))
ELSEWHERE = [*(("sm_75", *p) for p in PROBLEMS), ("sm_86", *PROBLEMS[0]), ("compute_80", *PROBLEMS[2])]


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("target", "mode", "length"), usually([(t, *p) for t in TARGETS for p in PROBLEMS], ELSEWHERE)
)
def test_every_target(target: str, mode: str, length: int, rng: np.random.Generator) -> None:
    run(plan_for(mode, length, "fp16", target), rng, options=("out_gate", "skip"))


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("mode", "length", "dtype", "target"),
    [
        ("causal", 65_536, "bf16", "sm_90"),
        *slow([("circular", 65_536, "fp16", "sm_90"), ("causal", 100_000, "bf16", "sm_90")]),
        ("circular", 65_521, "bf16", "sm_90"),
        ("causal", 32_768, "fp16", "sm_86"),
        ("circular", 65_536, "fp16", "sm_75"),  # two device stages
        ("circular", 30_011, "fp16", "sm_75"),  # folded in the device class
    ],
)
def test_the_device_class(mode: str, length: int, dtype: str, target: str, rng: np.random.Generator) -> None:
    plan = plan_for(mode, length, dtype, target)
    assert plan.memory_class == "device"
    run(plan, rng, batch=1 if mode == "causal" else 2, options=("in_gate", "out_gate", "skip"))


# Rows of fp16 are scaled (design 1.8)

KINDS = {"warp tile": ((16, 16), 0), "block": ((16, 16, 16), 0), "device": ((16, 16, 16), 1)}


@pytest.mark.drawn(3)
@pytest.mark.parametrize("target", ["sm_75", *slow(["sm_90"])])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_as_exact_beside_any_other(kind: str, target: str, rng: np.random.Generator) -> None:
    """Within 1.2e-3, whoever the partner in its transform is; what is not finite stays in its row."""
    factors, device = KINDS[kind]
    length = int(np.prod(factors))
    plan = search.with_shape(Problem("circular", length, "fp16"), target, factors, device, "wmma")
    u, k = every_pair(rng, "fp16", length)
    judge_rows_alone(plan, call(plan, u, k), u, k, SCALED)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("steps", [4096, 4091])  # rows that are aligned or not
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("kind", ["block", "device"])
def test_nothing_overflows(kind: str, mode: str, steps: int, rng: np.random.Generator) -> None:
    """Sums over a row of 8000 come to 64 times that between stages; a gated one of 3e4 starts beyond fp16."""
    factors, device = KINDS[kind]
    plan = search.with_shape(Problem(mode, 4096, "fp16"), "sm_75", factors, device, "wmma")
    u = torch.full((3, 1, steps), 8000.0)
    u[1] = 3e4
    gate = 1 + draw(rng, 3, 1, steps) / 8
    gate[1] *= 4
    k = filters(rng, 1, steps).abs()  # passes the mean, which is nearly all there is
    k *= 0.01 / k.sum()
    u, gate = u.half(), gate.half()
    judge_rows_alone(plan, call(plan, u, k, in_gate=gate), u, k, SCALED, in_gate=gate)


def test_chunks_reuse_the_workspace(rng: np.random.Generator) -> None:
    """Five transforms through a workspace of two: three chunks, odd at the end, across channels."""
    plan = search.with_shape(Problem("causal", 4096, "bf16"), "sm_90", (16, 16, 16), 1)
    small = type(plan)(**{**vars(plan), "chunk_bytes": 2 * 4 * 4096} | {})
    simulated = run(small, rng, batch=5, channels=1, options=("skip",))
    assert len(simulated.reports) == 3


# Powers of two; a prime; neither.
LONG = (131_072, 262_144, 524_288, 1_048_576, 2_097_152, 4_194_304, 1_000_003, 3_000_000)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("length", "mode"),
    usually(itertools.product(LONG, ("causal", "circular")), [(131_072, "circular"), (1_048_576, "causal")]),
)
def test_long_transforms_on_sampled_blocks(mode: str, length: int) -> None:
    dtype = "bf16" if mode == "causal" else "fp16"
    module, ptx = built(plan_for(mode, length, dtype))
    samples = list(sampled.check_launches(module, ptx, seed=length))
    assert len(samples) == sum(kernel.role != "peaks" for kernel in module.plan.kernels)
    for sample in samples:
        assert sample.accuracy.passed, f"{sample.description}: {sample.accuracy}"


@pytest.mark.drawn(5)
@pytest.mark.parametrize(
    ("mode", "length"),
    [
        ("causal", 256),
        ("circular", 1024),
        ("causal", 4096),
        ("circular", 20_480),
        ("causal", 65_536),
        ("circular", 1009),
    ],
)
def test_tensor_core_work_is_what_the_planner_counts(
    mode: str, length: int, rng: np.random.Generator
) -> None:
    plan = plan_for(mode, length, "bf16")
    batch = 2 * plan.rows_per_item
    simulated = run(plan, rng, batch=batch)
    counted = sum(sum(r.counters.tensor.values()) for r in simulated.reports.values())
    assert counted == 2 * tensor_ops(plan)


@pytest.mark.parametrize(("length", "steps", "saved"), [(32_768, 16_384, 512), (32_768, 16_385, 0)])
def test_rows_of_padding_cost_no_tensor_core_work(
    length: int, steps: int, saved: int, rng: np.random.Generator
) -> None:
    """32 768 = 32·32·32, causal: half the input leaves out one of two row tiles of stage 1, both ways.

    Each way is 64 column tiles of 2 x 2 row tiles, real and imaginary: half of 512 products.
    """
    plan = plan_for("causal", length, "bf16")
    assert plan.factors == (32, 32, 32)
    counted = [
        sum(sum(r.counters.tensor.values()) for r in run(plan, rng, length=n).reports.values())
        for n in (length, steps)
    ]
    assert counted[0] - counted[1] == saved


def test_the_argument_block_is_the_structure_the_kernels_read() -> None:
    """``sizeof(Args)`` and the offset of its last field, as NVRTC sees them."""
    _, ptx = built(plan_for("causal", 256, "fp16"))
    declared = ptx.split(".entry")[1].split(")")[0]
    assert f"[{ARGS_BYTES}]" in declared, declared
    assert ARGS_BYTES % ctypes.sizeof(ctypes.c_uint64) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
@pytest.mark.parametrize("length", [*POWERS, 65_536, 131_072])
def test_sweep(mode: str, length: int, dtype: str, target: str, rng: np.random.Generator) -> None:
    run(plan_for(mode, length, dtype, target), rng, batch=3, options=("in_gate", "out_gate", "skip"))
