"""Mutants of our own kernels: none may pass for right.

A plan's PTX is changed in one place (a barrier dropped, an index shifted) and run as whole calls; the
simulator must stop, or a result must fail the accuracy check. The calls together reach every branch of a
kernel: 16-byte and ragged accesses, each with gates and without, skip, an odd last row, workers that take one
piece of work and several, a workspace that is used again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from calls import built
from cases import slow
from command_line import why_not
from laboratory import Laboratory
from mutations import Mutation, dropped_barriers, shifted_indices
from reference import Float64, convolve
from tolerance import check

import fftgen.planner.launch
from fftgen import emulate
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.simulator import parse

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SAMPLED = 3  # shifted indices per plan of a default run; all of them with -m slow


def _plan(
    mode: str, length: int, dtype: str, factors: tuple[int, ...], device: int, engine: str = "wmma"
) -> Plan:
    """A small plan of a given shape; device stages in chunks of two transforms."""
    plan = search.with_shape(Problem(mode, length, dtype), "sm_90", factors, device, engine)
    return replace(plan, chunk_bytes=2 * 4 * plan.transform) if device else plan


# One of every kind of kernel that the templates make, in the smallest size. Folded circular lengths have the
# kernels of causal ones (test_fold.py).
PLANS = {
    "warp tile, right-angle": _plan("causal", 256, "fp16", (16, 16), 0),
    "warp tile, batch pair": _plan("circular", 256, "fp16", (16, 16), 0),
    "block, right-angle": _plan("causal", 4096, "fp16", (16, 16, 16), 0),
    "block, batch pair": _plan("circular", 4096, "fp16", (16, 16, 16), 0),
    "device, right-angle": _plan("causal", 4096, "bf16", (16, 16, 16), 1),
    "device, batch pair": _plan("circular", 4096, "fp16", (16, 16, 16), 1),
}
# Several tiles to a radix: no barrier between them is doubled by one around the stage.
WIDE = {
    "wide warp tile": _plan("causal", 1024, "bf16", (32, 32), 0),
    "wide block": _plan("causal", 8192, "bf16", (32, 16, 16), 0),
    "wide device": _plan("causal", 16_384, "fp16", (32, 32, 16), 1),
}
# Kinds that the smallest plan of order 4 is the first to have, with the kernels that are new in it.
LARGE = {
    "device around a block": _plan("causal", 65_536, "fp16", (16, 16, 16, 16), 1),
    "two device stages": _plan("causal", 65_536, "bf16", (16, 16, 16, 16), 2),
}
# The register chain: a warp's transforms, a block's, and the device stage around a warp's.
CHAIN = {
    "chain, warp": _plan("causal", 256, "bf16", (16, 16), 0, "mma"),
    "chain, block": _plan("circular", 4096, "fp16", (16, 16, 16), 0, "mma"),
    "chain, channels abreast": _plan("causal", 2048, "bf16", (8, 16, 16), 0, "mma"),
    "chain, pairs abreast": _plan("circular", 2048, "fp16", (8, 16, 16), 0, "mma"),
    # Twice 256 columns, so that twiddles have two levels.
    "chain, device": _plan("causal", 8192, "bf16", (16, 32, 16), 1, "mma"),
    "bf16 chain, warp": _plan("causal", 256, "bf16", (16, 16), 0, "mma:bf16-fp32"),
    "bf16 chain, block": _plan("causal", 4096, "bf16", (16, 16, 16), 0, "mma:bf16-fp32"),
    "bf16 chain, device": _plan("causal", 8192, "bf16", (16, 32, 16), 1, "mma:bf16-fp32"),
}
NEW = {"device around a block": ("rows",), "two device stages": ("columns2", "columns_inverse2")}
ALL = PLANS | WIDE | LARGE | CHAIN
REAL = {name: plan for name, plan in PLANS.items() if plan.real_input}

# Barriers that another one stands in for, by the source line before them. A mutant without one is right.
DOUBLED = {
    # The end of a tile's drain, where a stage has a single tile (radix 16): what comes next has a barrier
    # of its own before it touches staging or tile again (fetch, the block's barrier, the end of the kernel).
    "emit(a, b, row, column);",
}
# The block's first one: that of what its warps see of the rows comes before anybody reads a matrix.
DOUBLED_IN_BLOCKS = "const Dft<T, N"
# Of the register chain, by the start of the line before.
CHAIN_DOUBLED = {
    # The block's first barrier: that of the peaks comes before anybody reads a table.
    "chain, block": ("copy<SHARED_TABLES", "load<SHARED, true>(source, at, stride);"),
    # Before the first copy of a group: the chain of the group before has ended its reads with a barrier of
    # its own; and after the chain's reads nobody writes to shared memory but the next group.
    "chain, warp": ("} else {", "for (int n = 0; n < COLUMNS; ++n) load("),
    "chain, channels abreast": (
        "copy<SHARED_TABLES",
        "load<SHARED, true>(source, first, stride, lane);",
        "if (!even.finite || !odd.finite) {",
    ),
    "chain, device": ("uint4* const stage", "for (int n = 0; n < COLUMNS; ++n) load("),
}
CHAIN_DOUBLED["chain, pairs abreast"] = CHAIN_DOUBLED["chain, channels abreast"]
CHAIN_DOUBLED |= {f"bf16 {name}": lines for name, lines in CHAIN_DOUBLED.items()}
# "load<SHARED, true>": between two strips, for the compiler's sake; they share nothing. "if (!even.finite":
# for a branch, in which nothing is shared either.

# Where the compiler makes copies of their own of transforms that stand in for those beyond the end: nobody
# uses their results.
STAND_INS = ("chain, warp", "bf16 chain, warp")


@dataclass(frozen=True)
class Whole:
    """One call with what it should give. ``long_runs``: a worker takes as many pieces as it may."""

    u: torch.Tensor
    k: torch.Tensor
    in_gate: torch.Tensor | None
    out_gate: torch.Tensor | None
    skip: torch.Tensor
    exact: Float64
    long_runs: bool


def _calls(plan: Plan, rng: np.random.Generator) -> list[Whole]:
    n, pair = plan.problem.length, plan.rows_per_item
    dtype = torch.bfloat16 if plan.problem.dtype == "bf16" else torch.float16

    def one(batch: int, channels: int, length: int, *, gated: bool, long_runs: bool) -> Whole:
        def draw(*shape: int) -> torch.Tensor:
            return torch.from_numpy(rng.standard_normal(shape))

        # Abreast: aligned rows of two channels, and ragged ones of a last one without a neighbour.
        channels += plan.abreast - 1
        shape = (batch, channels, length)
        u = draw(*shape).to(dtype)
        in_gate, out_gate = (draw(*shape).to(dtype) for _ in range(2)) if gated else (None, None)
        k = (draw(channels, n) * torch.exp(-8 * torch.arange(n) / n)).float()
        skip = draw(channels).float()
        exact = convolve(
            u.double(),
            k.double(),
            mode=plan.problem.mode,
            length=n,
            in_gate=None if in_gate is None else in_gate.double(),
            out_gate=None if out_gate is None else out_gate.double(),
            skip=skip.double(),
        )
        return Whole(u, k, in_gate, out_gate, skip, exact, long_runs)

    # Whole 16-byte vectors and an odd last row; a ragged end, with gates and without; half the rows empty.
    half = 3 * n // 7
    # Two groups, where the gates of the next take the place of one's.
    group = plan.body.group if plan.body.brought else 1
    return [
        one(2 * pair * group - pair // 2, 1, n - n % 8, gated=True, long_runs=True),
        one(pair, 2, n - 3, gated=True, long_runs=False),
        one(2 * pair, 1, n - 5, gated=False, long_runs=True),
        one(2 * pair, 1, half - half % 8, gated=False, long_runs=True),
        # Whole rows are loaded by other code than those that end early.
        one(pair, 1, n, gated=False, long_runs=False),
        one(pair, 1, n - 8 - n % 8, gated=True, long_runs=False),
    ]


class Calls(Laboratory):
    """A plan's kernels and calls of them."""

    def __init__(self, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(*built(ALL[name]), monkeypatch)
        self.stand_ins = name in STAND_INS
        self.calls = _calls(ALL[name], rng)
        self.look()

    def run(self, ptx: str) -> None:
        plan = self.module.plan
        for call in self.calls:
            with self.patch.context() as patch:
                if call.long_runs:  # else a small grid spreads over the chip, a piece for each worker
                    patch.setattr(
                        fftgen.planner.launch, "run_of", lambda pieces, slots: max(2, min(8, pieces))
                    )
                y, _ = emulate.convolve(
                    self.module,
                    call.u,
                    call.k,
                    in_gate=call.in_gate,
                    out_gate=call.out_gate,
                    skip=call.skip,
                    ptx=ptx,
                )
            check(y.double().numpy(), call.exact, plan.problem.dtype, plan.order, plan.compute_format)


@pytest.fixture
def laboratory(name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Calls(name, rng, monkeypatch)


def shifts(ptx: str) -> list[Mutation]:
    """Shifted indices of the convolution's kernels.

    But for what a peak is taken of, and the peaks that the warps of a block find: all but one of the numbers
    that a shifted load brings, others bring too.
    """

    def of_a_peak(m: Mutation) -> bool:
        rows = "ld.global" in m.text and "scaled_peaks.cuh" in dict(m.places)
        return rows or ("ld.shared" in m.text and m.places[0][0] == "wmma_rows.cuh")

    return [m for m in shifted_indices(ptx) if "_filter" not in m.entry and not of_a_peak(m)]


def test_a_mutant_is_the_module_that_its_text_gives(rng: np.random.Generator) -> None:
    """No text is parsed again: of every kind of mutation, one is held against its text."""
    module, ptx = built(PLANS["device, right-angle"])
    right = parse(ptx, source=module.source.text)
    shifted = shifts(ptx)
    index = [m for m in shifted if len(m.instead) == 2]
    address = [m for m in shifted if len(m.instead) == 1]
    for kind in (dropped_barriers(ptx), index, address):
        mutation = kind[int(rng.integers(len(kind)))]
        mutant = mutation.module(right)
        assert mutant == parse(mutation.apply(ptx), source=module.source.text)
        assert mutant.entries[mutation.entry] != right.entries[mutation.entry]


USUAL = [name for name in WIDE | REAL if name not in ("wide block", "wide device")]


@pytest.mark.drawn(6)
@pytest.mark.parametrize("name", [*USUAL, *slow(n for n in ALL if n not in USUAL and n not in CHAIN)])
def test_no_barrier_can_be_dropped(name: str, laboratory: Laboratory) -> None:
    """Every barrier is needed and its absence is seen, but for those that another one doubles."""
    mutations = [m for m in dropped_barriers(laboratory.ptx) if "_filter" not in m.entry]
    assert len(mutations) >= 2 * len(ALL[name].stages)
    doubled = set() if name in WIDE else DOUBLED
    lines = {str(m): laboratory.source_line(m.places[0], -1) for m in laboratory.survivors(mutations)}
    if ALL[name].scaled and ALL[name].block_stage:
        lines = {m: line for m, line in lines.items() if not line.startswith(DOUBLED_IN_BLOCKS)}
    assert [m for m, line in lines.items() if line not in doubled] == []


OFTEN = [*(n for n in CHAIN if not n.startswith("bf16")), "bf16 chain, block"]
SELDOM = [n for n in CHAIN if n not in OFTEN]


@pytest.mark.drawn(6)
@pytest.mark.parametrize("name", [*OFTEN, *slow(SELDOM)])
def test_no_barrier_of_the_register_chain_can_be_dropped(name: str, laboratory: Laboratory) -> None:
    """The same; barriers of the filter's kernels: test_filter_kernel.py."""
    mutations = [m for m in dropped_barriers(laboratory.ptx) if "_filter" not in m.entry]
    assert len(mutations) >= 2 * len(ALL[name].stages)
    found = laboratory.survivors(mutations)
    doubled = CHAIN_DOUBLED[name]
    assert [str(m) for m in found if not laboratory.source_line(m.places[0], -1).startswith(doubled)] == []


@pytest.mark.drawn(6)
@pytest.mark.parametrize("name", [*PLANS, *OFTEN, *slow(SELDOM)])
def test_a_shifted_index_is_noticed(name: str, laboratory: Laboratory, rng: np.random.Generator) -> None:
    mutations = shifts(laboratory.ptx)
    assert len(mutations) > 200
    assert laboratory.unreached(mutations) == []
    sample = rng.choice(len(mutations), SAMPLED, replace=False)
    assert laboratory.missed((mutations[i] for i in sample), mutations) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLANS, *LARGE, *CHAIN])
def test_every_shifted_index_is_noticed(name: str, laboratory: Laboratory) -> None:
    mutations = [m for m in shifts(laboratory.ptx) if m.entry.endswith(NEW.get(name, ("",)))]
    assert len(mutations) > 40
    assert laboratory.unreached(mutations) == []
    judged = mutations
    if name in LARGE:  # two columns on, a twiddle of 65 536 points turns by 3e-3 at most: below rounding
        judged = [m for m in mutations if m.places[0][0] != "tables.cuh"]
    assert laboratory.missed(judged, mutations) == []
