"""What was decided about gradients: kernels around the transforms of a causal plan.

dk_j = sum_b sum_t v_t x_{t-j} is what a product of spectra gives, conj(X) V, summed over the batch,
transformed back and weighted as the filter was (design 1.5). The kernels here make that sum, in fp32, in
parts: workers share the batch rows of a channel, each writes a part of its own, and parts are added in a
fixed order. A circular length uses the causal plan of the same length: what has come around stands in the
imaginary part (fftgen/gradient.py).

With ``signals`` the same kernels go on: the spectra of both signals are there, so conj(K) V, transformed
back, gives the gradients of u and of its gate, and K X that of the output's gate. Two transforms there and
two back take the place of six halves, and every tensor is read once from device memory: with both gates 14
bytes of an element instead of 28 (design 1.5). A circle would need its own filter there: these are causal.

Real rows only: no two rows share a transform, so each keeps a power of two of its own (design 1.8). Always
in scaled fp16, whatever the convolution computes in: sums are fp32 in either format.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Literal

from fftgen.errors import ArtifactError
from fftgen.planner import fragments
from fftgen.planner.cost import tensor_ops
from fftgen.planner.instructions import BACK, THERE
from fftgen.planner.mma_kernels import STRIPS
from fftgen.planner.plan import SIMT, TILE, Kernel, Plan, Table, plain
from fftgen.problem import Problem

FORWARD = ("first", "twiddle", "last")  # tables of the chain's forward half: they lie first
MOST_BESIDE = 3  # row tiles of butterflies of which a warp takes those of both signals at a time
UNROLLED = 3  # rows of both signals that a warp takes one after the other without a loop


@dataclass(frozen=True)
class Gradient:
    """The gradient's kernels for a transform and a target.

    ``plan``: the causal plan whose stages and tables they use, and whose columns kernel (of a warp's rows
    that of peaks, too) runs before them where there is a device stage, each signal in a workspace of its own,
    so that ``chunk_bytes`` is half of the convolution's; its ``filter`` are the kernels that take the sum to
    taps (planner/finish.py). ``kernel``: the kernel that makes the sum. A worker's spectrum of the
    first signal stands at ``spectra_at`` of shared memory (bytes), -1: in device memory; its sum at
    ``sums_at``, of each row of the chain ``sums_held`` tiles of 16 x 16 numbers, the others in device memory.
    A warp's rows of tensors are on their way while it computes (``kernel.brought``): the signal and
    its gate that come next, in whose place operands stand when they have come, and where there is room gates
    of V's results.
    ``together``: a block's shared memory has both signals, and a warp takes columns and rows of both at a
    time: no spectrum is kept, and tables and the filter's are read once for both.
    ``signals``: gradients of signals and gates as well as of the filter.
    ``sums``: where rows have sections, the kernel that makes the sum; ``kernel`` then does all else
    (planner/gradient_sections.py). Where clusters share these (``Plan.spread``), ``kernel`` does all.
    """

    PREFIXES: ClassVar[tuple[str, ...]] = ("fftgen_gradient_", "fftgen_backward_")

    plan: Plan
    kernel: Kernel
    spectra_at: int
    sums_at: int
    sums_held: int = 0
    together: bool = False
    signals: bool = False
    sums: Kernel | None = None

    @property
    def problem(self) -> Problem:
        """The causal problem; a circular one of the same length and dtype has the same kernels."""
        return self.plan.problem

    @property
    def blocks(self) -> bool:
        """A worker is a block, not a warp."""
        return self.plan.block_stage

    @property
    def two_lengths(self) -> bool:
        """Whether the second signal may have more steps than the first. (Warps by themselves ask for rows of
        one length: another took up to 23 registers more, as compiled.)"""
        return self.plan.memory_class != "warp"

    @property
    def ratios_at(self) -> int:
        """Where a block has what brings strips of the workspace to the power of their row (bytes)."""
        return self.kernel.staging_at + peaks_bytes(self.signals)

    @property
    def rows(self) -> int:
        """Rows of a transform, each with workers of its own."""
        return self.plan.transform // self.plan.row_length

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; that of the plan inside.

        That it is of a filter alone goes without saying, as before there was more.
        """
        raw = asdict(self)
        del raw["plan"]["whole"]  # stages have launches of their own here
        del raw["plan"]["matrix"]  # and a section takes itself and those before
        if not self.plan.spread:
            del raw["plan"]["spread"]
        raw["plan"]["kernels"] = [plain(kernel) for kernel in self.plan.kernels]
        raw["kernel"] = plain(self.kernel)
        raw["sums"] = plain(self.sums) if self.sums else None
        for name, implied in self._implied().items():
            if raw[name] == implied:
                del raw[name]
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Gradient:
        """What ``to_json`` wrote. Raises ArtifactError when the text is not that."""
        try:
            raw: dict[str, Any] = json.loads(text)
            plan = Plan.from_json(json.dumps(raw["plan"]))
            kernel = Kernel(**raw["kernel"])
            sums = Kernel(**raw["sums"]) if raw.get("sums") else None
            found = Gradient(plan, kernel, raw["spectra_at"], raw["sums_at"], sums=sums)
            implied = found._implied().items()
            return replace(found, **{name: raw.get(name, x) for name, x in implied if name != "sums"})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"not a gradient's plan: {error}: rebuild with `fftgen build --train`"
            ) from error

    def _implied(self) -> dict[str, Any]:
        """What goes without saying, as before there was more: one signal after the other, all of the sum in
        one place, no gradients of signals."""
        held = row_tiles(self.plan) if self.sums_at >= 0 and self.plan.engine != SIMT else 0
        return {"sums_held": held, "together": False, "signals": False, "sums": None}

    @property
    def unrolled(self) -> bool:
        """A warp that takes rows of both signals has so few that there is no loop over them: 5 % of the
        instructions, as compiled. (Longer rows would put registers by.)"""
        few = self.plan.inner[0].lines <= UNROLLED * self.kernel.warps
        return self.together and few and row_tiles(self.plan) == 1

    @property
    def wide_spectra(self) -> bool:
        """Spectra come in fp32 to where they meet, and only what is kept of X is rounded.

        By a block; of both signals together it takes 16 instructions of 128 elements away, or 8 where both go
        on as operands. Not where registers are too few (as compiled): 32 columns of both signals at a time,
        and one signal after the other that goes on.
        """
        return self.blocks and (self.plan.factors[-1] == TILE if self.together else not self.signals)

    @property
    def sides_apart(self) -> bool:
        """Half of a block's warps take the columns of one signal back, the others those of the other.

        Where a signal has too few for all of them."""
        few = self.plan.inner[0].rest // 32 < self.kernel.warps
        return self.together and self.signals and self.kernel.warps > 1 and few

    @property
    def columns_in_turn(self) -> bool:
        """A warp takes the columns of one signal there, then those of the other: butterflies of both have no
        room in its registers."""
        return self.together and self.plan.inner[0].butterflies > MOST_BESIDE

    @property
    def held(self) -> Fraction:
        """Of the sum, what stands in shared memory."""
        return Fraction(self.sums_held, row_tiles(self.plan))

    @property
    def name(self) -> str:
        """What the kernel is called."""
        p = self.plan.problem
        return (
            f"fftgen_{self.label}_n{p.length}_{p.dtype}_{self.plan.engine}_"
            f"{self.plan.target.replace('_', '')}_{self.digest[:8]}"
        )

    @property
    def sums_name(self) -> str:
        """What the kernel ``sums`` is called."""
        return f"{self.name}_sums"

    @property
    def label(self) -> Literal["gradient", "backward"]:
        """What its kernel makes: "gradient", of a filter, or all of them, "backward"."""
        return "backward" if self.signals else "gradient"

    @property
    def before(self) -> tuple[Kernel, ...]:
        """The plan's kernels that run on each signal first."""
        return tuple(k for k in self.plan.kernels if k.role in ("peaks", "columns"))

    @property
    def after(self) -> tuple[Kernel, ...]:
        """The plan's kernels that run on each signal last."""
        return tuple(k for k in self.plan.kernels if self.signals and k.role == "columns_inverse")

    @property
    def tensor_ops(self) -> int:
        """16x16x16 matrix instructions for a row and its cotangent, with every gradient there is: exact."""
        return self.operations(2 if self.signals else 0)

    def operations(self, back: int) -> int:
        """The same for two forward transforms and so many on the way back."""
        return 2 * tensor_ops(self.plan, (THERE,)) + back * tensor_ops(self.plan, (BACK,))

    def __str__(self) -> str:
        p, k = self.plan, self.kernel
        factors = "·".join(map(str, p.factors))
        return (
            f"{self.label} {p.problem.length} {p.problem.dtype} {p.target} | "
            f"N={p.transform}={factors} "
            f"{p.memory_class} {p.engine} {p.compute_format} | {k.warps}w {k.shared_bytes}B, {self.kept}"
        )

    @property
    def kept(self) -> str:
        """Where spectra and sums stand, in words."""
        if self.plan.engine == SIMT:
            return "spectrum in shared memory, sum in registers"
        if self.plan.spread:
            return f"{self.plan.sections} sections shared by clusters, which add to sums in device memory"
        if self.sums:
            return f"{self.plan.sections} sections, whose spectra a kernel of its own sums up"
        places = {True: "shared", False: "device"}
        if self.together:
            spectrum = "both signals at a time"
        else:
            spectrum = f"spectrum in {places[self.spectra_at >= 0]}"
        part = f"{self.held} of the sum" if 0 < self.held < 1 else "sum"
        return f"{spectrum}, {part} in {places[self.sums_held > 0]} memory"


def row_tiles(plan: Plan) -> int:
    """Tiles of 16 x 16 numbers in a row of the register chain."""
    return max(1, plan.factors[-1] * plan.factors[-2] // TILE**2)


def tables(found: Gradient) -> tuple[Table, ...]:
    """The tables that the gradient's kernels read."""
    names = {*FORWARD, "columns", "outer", "outer_high", "device", "low", "high"}
    return tuple(t for t in found.plan.tables if found.signals or t.name in names)


def copied(plan: Plan, signals: bool) -> int:
    """Bytes that a block copies from the start of the table block: the chain's forward half, or all."""
    if signals:
        return fragments.copied(plan.tables)
    return max(t.offset + t.nbytes for t in plan.tables if t.name in FORWARD)


def peaks_bytes(signals: bool) -> int:
    """Shared memory of a block for peaks of a row's strips, of each side, and for what undoes its scaling."""
    return (2 if signals else 1) * 2 * 4 * STRIPS


def columns_bytes(plan: Plan) -> int:
    """Bytes of the matrices of the block stage, which a block copies as well."""
    return sum(t.nbytes for t in plan.tables if t.name == "columns")
