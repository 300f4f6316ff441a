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
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, ClassVar, Literal

from fftgen.errors import ArtifactError, NoPlanError
from fftgen.planner import fragments, mma_rules, search, simt, twins
from fftgen.planner.cost import tensor_ops
from fftgen.planner.filter_design import transposed
from fftgen.planner.launch import Launch, chunk_items, launch_of
from fftgen.planner.mma_rules import CHAIN_POINTS, STRIPS
from fftgen.planner.plan import FP32, SCALED, SIMT, Kernel, Plan, Table, plain
from fftgen.planner.work import BACK, THERE
from fftgen.problem import Problem
from fftgen.targets import Target
from fftgen.targets import target as find_target

REGISTERS = mma_rules.REGISTERS[SCALED]
FORWARD = ("first", "twiddle", "last")  # tables of the chain's forward half: they lie first
ENOUGH_WARPS = 16  # resident on a multiprocessor; below, sums go to device memory sooner
LEAST_SHARE = 4  # transforms of a worker: each writes 8 N bytes where a transform reads 4 N


@dataclass(frozen=True)
class Gradient:
    """The gradient's kernels for a transform and a target.

    ``plan``: the causal plan whose stages and tables they use, and whose columns kernel (of a warp's rows
    that of peaks, too) runs before them where there is a device stage, each signal in a workspace of its own,
    so that ``chunk_bytes`` is half of the convolution's; its ``filter`` are the kernels that take the sum to
    taps (planner/finish.py). ``kernel``: the kernel that makes the sum. A worker's spectrum of the
    first signal stands at ``spectra_at`` of shared memory (bytes), its sum at ``sums_at``; -1: in device
    memory. A warp's rows of tensors are on their way while it computes (``kernel.brought``): the signal and
    its gate that come next, in whose place operands stand when they have come, and where there is room gates
    of V's results.
    ``signals``: gradients of signals and gates as well as of the filter.
    """

    PREFIXES: ClassVar[tuple[str, ...]] = ("fftgen_gradient_", "fftgen_backward_")

    plan: Plan
    kernel: Kernel
    spectra_at: int
    sums_at: int
    signals: bool = False

    @property
    def problem(self) -> Problem:
        """The causal problem; a circular one of the same length and dtype has the same kernels."""
        return self.plan.problem

    @property
    def blocks(self) -> bool:
        """A worker is a block, not a warp."""
        return self.plan.block_stage

    @property
    def ratios_at(self) -> int:
        """Where a block has what brings strips of the workspace to the power of their row (bytes)."""
        return self.kernel.staging_at + _peaks_bytes(self.signals)

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
        raw["plan"]["kernels"] = [plain(kernel) for kernel in self.plan.kernels]
        raw["kernel"] = plain(self.kernel)
        if not self.signals:
            del raw["signals"]
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Gradient:
        """What ``to_json`` wrote. Raises ArtifactError when the text is not that."""
        try:
            raw: dict[str, Any] = json.loads(text)
            plan = Plan.from_json(json.dumps(raw["plan"]))
            kernel = Kernel(**raw["kernel"])
            places = (raw["spectra_at"], raw["sums_at"])
            return Gradient(plan, kernel, *places, raw.get("signals", False))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"not a gradient's plan: {error}: rebuild with `fftgen build --train`"
            ) from error

    @property
    def name(self) -> str:
        """What the kernel is called."""
        p = self.plan.problem
        return (
            f"fftgen_{self.label}_n{p.length}_{p.dtype}_{self.plan.engine}_"
            f"{self.plan.target.replace('_', '')}_{self.digest[:8]}"
        )

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
        places = {True: "shared", False: "device"}
        kept = f"spectrum in {places[self.spectra_at >= 0]}, sum in {places[self.sums_at >= 0]} memory"
        factors = "·".join(map(str, p.factors))
        return (
            f"{self.label} {p.problem.length} {p.problem.dtype} {p.target} | "
            f"N={p.transform}={factors} "
            f"{p.memory_class} {p.engine} {p.compute_format} | {k.warps}w {k.shared_bytes}B, "
            + ("spectrum in shared memory, sum in registers" if p.engine == SIMT else kept)
        )


def tables(found: Gradient) -> tuple[Table, ...]:
    """The tables that the gradient's kernels read."""
    names = {*FORWARD, "columns", "outer", "outer_high", "device", "low", "high"}
    return tuple(t for t in found.plan.tables if found.signals or t.name in names)


def copied(plan: Plan, signals: bool) -> int:
    """Bytes that a block copies from the start of the table block: the chain's forward half, or all."""
    if signals:
        return fragments.copied(plan.tables)
    return max(t.offset + t.nbytes for t in plan.tables if t.name in FORWARD)


def _peaks_bytes(signals: bool) -> int:
    """Shared memory of a block for peaks of a row's strips, of each side, and for what undoes its scaling."""
    return (2 if signals else 1) * 2 * 4 * STRIPS


def columns_bytes(plan: Plan) -> int:
    """Bytes of the matrices of the block stage, which a block copies as well."""
    return sum(t.nbytes for t in plan.tables if t.name == "columns")


def _fitted(
    plan: Plan, chip: Target, group: int, warps: int, brought: int, spectra: bool, sums: bool, signals: bool
) -> Gradient | None:
    """One layout, or None where it does not fit: what workers keep in shared memory is said by the flags.

    ``brought``: tensors of which a warp has rows there.
    """
    body, points = plan.body, plan.row_length
    if plan.block_stage:
        workers, kept, plane, registers = 1, 1, points, REGISTERS
        peaks_at = 4 * points
        at = peaks_at + _peaks_bytes(signals)
        if plan.strip_peaks:
            at += mma_rules.ratio_bytes(plan.inner[0], plan.kernel("columns").columns)
            at = -(-at // fragments.ALIGNMENT) * fragments.ALIGNMENT
    else:
        workers, kept, registers = warps, group, _warp_registers(group * points, signals)
        plane, peaks_at = group * points, -1
        at = warps * plane * 2 * (brought or 2)  # or both planes of rows of the workspace
    tables_at, at = at, at + copied(plan, signals) + (0 if signals else columns_bytes(plan))
    spectra_at, at = (at, at + workers * kept * 4 * points) if spectra else (-1, at)
    sums_at, at = (at, at + workers * 8 * points) if sums else (-1, at)
    if at > chip.shared_block or 32 * warps * registers > chip.registers_sm:
        return None
    resident = max(1, chip.resident_blocks(warps, at, registers))
    kernel = replace(
        body,
        role="gradient",
        warps=warps,
        items=workers,
        resident=resident,
        plane=plane,
        staging_at=peaks_at,
        matrices_at=tables_at,
        shared_bytes=at,
        group=group,
        brought=brought,
        brought_at=0,
    )
    return Gradient(search.levelled(plan, kernel, chip), kernel, spectra_at, sums_at, signals=signals)


def _warp_registers(points: int, signals: bool) -> int:
    """Registers of a thread whose warp holds so many points of transforms: it hardly spills (as compiled).

    Above 1024 points the warps whose registers would do for all gradients find no room for their spectra in
    shared memory: 12 of them would move 84 bytes a point through the L2, which bounds them, 8 move 68.
    """
    if points > CHAIN_POINTS:
        return 255 if signals else 168
    return 160 if 2 * points > CHAIN_POINTS else REGISTERS


def _fitting(plan: Plan, chip: Target, signals: bool) -> Iterator[Gradient]:
    """Every layout that fits: columns of a thread, warps of a block, transforms of a warp, places."""
    places = ((True, True), (True, False), (False, False))
    # The signal that comes next and its gate; and gates of two results.
    brought = (0,) if plan.block_stage or plan.device_stages else (4, 2) if signals else (2,)
    for layout in search.layouts(plan, chip):
        body = layout.body
        if plan.block_stage:  # no warp idle in the chain
            group = min(body.group, max(1, layout.inner[0].radix // body.warps), 2 if signals else body.group)
        else:  # of several transforms at a time one half: the other half's registers go to the sum
            group = max(1, body.group // 2)
        for tensors, (spectra, sums) in product(brought, places):
            found = _fitted(layout, chip, group, body.warps, tensors, spectra, sums, signals)
            if found is not None:
                yield found


def _rank(found: Gradient) -> tuple[bool | int, ...]:
    """Enough warps first, then what stays on the multiprocessor, or is brought there ahead, then what a
    thread does at a time."""
    kernel = found.kernel
    warps = min(kernel.resident * kernel.warps, ENOUGH_WARPS)
    # Complex columns from the workspace, eight to a thread, may spill.
    columns = -abs(kernel.columns - 4) if found.plan.device_stages else kernel.columns
    return warps, found.sums_at >= 0, found.spectra_at >= 0, kernel.brought, columns, kernel.warps


@lru_cache(maxsize=256)
def gradient(problem: Problem, target: str | Target) -> Gradient:
    """The gradient of a problem's filter: the layout with enough resident warps that keeps most at hand.

    Raises NoPlanError where the register chain does not run: before sm_80.
    """
    chip = find_target(target)
    if problem.dtype == FP32:
        return _by_threads(problem, chip)
    candidates = search.search(Problem("causal", problem.length, problem.dtype), chip)
    plan = next((c.plan for c in candidates if c.plan is not None and c.engine == "mma"), None)
    if plan is None:
        raise NoPlanError(
            f"no kernel makes the gradient of a filter of length {problem.length} {problem.dtype} on "
            f"{chip.name}: " + (mma_rules.supports(chip) or "no plan of the mma engine serves it"),
            [str(c) for c in candidates if c.engine == "mma"][:20],
        )
    found = _best(plan, chip, signals=False)
    if found is None:
        raise NoPlanError(f"the gradient's kernel does not fit a block of {chip.name}: {plan}", [])
    return found


def _by_threads(problem: Problem, chip: Target) -> Gradient:
    """The gradient of a filter of signals in fp32, by the engine "simt": of the first length that fits."""
    tried = [simt.gradient_plan(problem, chip, n) for n in search.lengths(problem)]
    for found in tried:
        if not isinstance(found, str):
            return Gradient(*found, 0, 0)
    raise NoPlanError(
        f"no kernel makes the gradient of a filter of length {problem.length} fp32 on {chip.name}: "
        f"{tried[0]}",
        [str(reason) for reason in tried],
    )


def _best(plan: Plan, chip: Target, *, signals: bool) -> Gradient | None:
    """Of a convolution's plan, the layout of the gradient's kernels that comes first, if any fits."""
    half = replace(plan, chunk_bytes=plan.chunk_bytes // 2, whole=None)
    found = max(_fitting(half, chip, signals), key=_rank, default=None)
    return None if found is None else finished(found, chip)


@lru_cache(maxsize=256)
def backward(problem: Problem, target: str | Target) -> Gradient | None:
    """All gradients of a causal problem by one pass; None where there are no kernels for it.

    Its spectra of filters are those of the problem's own plan, so both have their factors in common.
    """
    chip = find_target(target)
    plan = search.plan(problem, chip)
    if plan.engine == SIMT:
        made = simt.backward_plan(plan, chip)
        return None if made is None else Gradient(*made, 0, 0, signals=True)
    found = _best(plan, chip, signals=True) if read_backwards(plan) else None
    if found is None:
        return None
    kernels = tuple(twins.roomy(plan, k) if k.role == "columns_inverse" else k for k in found.plan.kernels)
    return replace(found, plan=replace(found.plan, kernels=kernels))


def read_backwards(plan: Plan) -> bool:
    """Whether spectra of a plan are what the kernels of a backward pass read."""
    if plan.engine == SIMT:
        return simt.reads_back(plan, find_target(plan.target))
    return plan.problem.causal and plan.engine == "mma" and plan.scaled


def finished(found: Gradient, chip: Target) -> Gradient:
    """A chosen layout with the kernels that take its sum to taps."""
    return replace(found, plan=replace(found.plan, filter=transposed(found.plan, chip)))


@dataclass(frozen=True)
class GradientLaunch:
    """One launch. ``side``: 0 or 1, the signal of a kernel before or after; -1: the kernel of both."""

    launch: Launch
    side: int
    parts: int
    workers: int


def least_share(found: Gradient) -> int:
    """Transforms that are worth a worker."""
    return LEAST_SHARE if found.blocks else max(LEAST_SHARE, found.kernel.group)


def parts(found: Gradient, batch: int, channels: int) -> int:
    """Workers that share a channel's batch rows: as many as fill the chip, if each has rows enough."""
    kernel = found.kernel
    full = find_target(found.plan.target).multiprocessors * kernel.resident * kernel.items
    at_once = channels
    if found.plan.chunk_bytes:
        at_once = max(1, min(channels, chunk_items(found.plan, batch * channels) // batch))
    return max(1, min(full // (at_once * found.rows), batch // least_share(found)))


def spectra_bytes(found: Gradient, planned: Iterable[GradientLaunch]) -> int:
    """Bytes that workers keep of the first signal's spectra in device memory, for a call's launches."""
    if found.spectra_at >= 0:
        return 0
    most = max(launch.workers for launch in planned)
    group = 1 if found.blocks else found.kernel.group
    return most * group * 4 * found.plan.row_length


def launches(found: Gradient, batch: int, channels: int, length: int) -> tuple[GradientLaunch, ...]:
    """Every launch of one call on ``(batch, channels, length)``, in order, chunk by chunk.

    A chunk may end inside a channel: the next one adds to the same parts.
    """
    total = batch * channels
    chunk = chunk_items(found.plan, total)
    shared = parts(found, batch, channels)
    made = []
    for first in range(0, total, chunk):
        items = min(chunk, total - first)
        for side in (0, 1) if found.plan.device_stages else ():
            for before in found.before:
                one = launch_of(found.plan, before, first, items, length)
                made.append(GradientLaunch(one, side, shared, 0))
        at_once = (first + items - 1) // batch - first // batch + 1
        workers = at_once * found.rows * shared
        kernel = found.kernel
        grid = -(-workers // kernel.items)
        both = Launch(kernel, found.name, grid, 32 * kernel.warps, kernel.shared_bytes, first, items, 1)
        made.append(GradientLaunch(both, -1, shared, workers))
        for side in (0, 1):
            for after in found.after:
                one = launch_of(found.plan, after, first, items, length)
                made.append(GradientLaunch(one, side, shared, 0))
    return tuple(made)
