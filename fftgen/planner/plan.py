"""What was decided: a frozen Plan, its one-line text form, its JSON round trip and its digest.

A plan holds numbers and names only. The renderer turns it into source, the interpreter runs it in
NumPy, the launcher derives grids from it; none of them decides anything again.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from fftgen.errors import ArtifactError, InternalError
from fftgen.planner.filter import Filter, FilterKernel
from fftgen.planner.matrix_scale import kept
from fftgen.problem import Problem

SCHEMA = 6
# Compute formats: of the "mma" engine the first two, of "wmma" the two in the middle, of "simt" the last.
SCALED, BF16_FP32, FP16_FP32, FP32 = "scaled-fp16", "bf16-fp32", "fp16-fp32", "fp32"
SIMT = "simt"  # the engine without matrix instructions (planner/simt.py)
TILE = 16  # rows and columns of a matrix instruction's tile
HALF_TILE = TILE // 2  # a radix of the "mma" engine's first stage, and of no other
TALL = 128  # radix of the tallest columns: Plan.wide_columns
BLOCK_POINTS = 32_768  # whose spectrum one block may make
# Which sections of a row a section of the result takes (planner/sections.py), and how a plan says it.
LOWER, FULL, CIRCULANT = "lower", "full", "circulant"
MATRICES = {LOWER: "", FULL: " both ways", CIRCULANT: " around"}


@dataclass(frozen=True)
class Stage:
    """One Monarch stage (design 1.2): multiply by a DFT matrix along a digit, then by a twiddle.

    ``radix`` is N_s, ``rest`` is M_s. ``place`` says where the stage's data lives: "device" (columns of
    the workspace), "block" (columns of shared memory) or "warp" (a tile owned by one warp).
    The entries of the DFT matrix carry the factor ``scale`` (planner/matrix_scale.py), forward and inverse.
    ``halves``: sums and differences of the two halves of the input come before the DFT, which then takes half
    of the matrix (decimation in frequency); its frequencies stand with the even ones before the odd ones.
    ``butterflies`` B: of the first stage, radix 16 B. With n = B a + b and k = c + 16 d, F[k, n] =
    w^(b d) F[c, n], w = exp(-2 pi i / B): a matrix of 16 rows for each b, and DFTs of B points that a thread
    does by itself (decimation in time). 1: the matrix does all.
    A radix of half a tile, of the first stage, is that of two channels abreast (``Plan.abreast``).
    ``split`` is the length of the low digit of the two-level twiddle table: T(k, r) =
    high(k, r // split) * low(k, r % split); ``split == rest`` is a single table, 0 none (last stage).
    """

    radix: int
    rest: int
    place: str
    scale: float
    split: int
    halves: bool = False
    butterflies: int = 1

    @property
    def two_levels(self) -> bool:
        """The twiddles are a product of two tables."""
        return self.split < self.rest

    @property
    def lines(self) -> int:
        """Rows of the matrix whose columns the stage transforms: its radix, or those of two channels."""
        return TILE if self.radix == HALF_TILE else self.radix


@dataclass(frozen=True)
class Table:
    """A constant array inside the plan's table block: ``shape`` elements of ``element`` at ``offset`` bytes.

    Engine "wmma": kind "dft": three planes (real, imaginary, minus imaginary) of radix x pitch 16-bit
    numbers; kind "high"/"low": rows of complex fp32 (interleaved) twiddles. Engine "mma": matrices
    of operands ("bf16" or "fp16") and fp16 twiddles in the order of registers, kinds as in fragments.py.
    """

    name: str
    stage: int  # 1-based
    kind: str
    shape: tuple[int, ...]
    element: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Kernel:
    """One entry point: its role, its threads and its shared memory.

    role "convolve": the whole convolution; "columns"/"columns_inverse": a device stage (``stage``) over
    columns; "rows": everything inside a row of the workspace; "peaks": what rows are scaled by; "whole": all
    of these.
    ``items``: transforms that a block works on at a time ("warp" placed tiles: one per warp; "whole": rows).
    ``resident`` is the number of blocks per multiprocessor that registers must leave room for.
    ``pitch`` is the distance of tile rows in shared memory, ``row`` the distance of block rows (elements); of
    "whole" the rows of the workspace that a block's shared memory holds, 0 where they stand in the L2;
    ``held`` of the lines of each, as many as the radix of the block stage: the others stand in the L2.
    Offsets are in bytes from the start of dynamic shared memory; ``matrices_at`` < 0: the DFT matrices
    stay in device memory.

    Engine "mma": ``columns`` that a thread loads side by side in the outer stage (V), ``group`` of rows or
    transforms that a warp takes through the inner stages at a time. ``pitch`` is then the distance of block
    rows in 16-byte pieces, ``staging_at`` where warps exchange their peaks, of "rows" and "whole" what brings
    strips to the power of their row, of a warp's pairs what undoes their scaling (< 0: registers hold it).
    Engine "simt": ``pitch`` complex numbers from one transform of a block to the next, ``columns`` of a
    block; what stages there are, and how they lie in shared memory, say the kernels of filters (simt.py).
    ``brought``: tensors of which rows are on their way to shared memory, at ``brought_at``, while a warp
    computes: the signal and its gate, then the gate of each result; of "columns_inverse" these gates alone,
    as of "whole" where signals are not. ``plane`` are then the pieces of 16 bytes that a warp has of them.
    """

    role: str
    stage: int
    warps: int
    items: int
    resident: int
    pitch: int
    row: int
    plane: int  # elements of one plane (real or imaginary) of a transform's shared working set
    staging_at: int
    matrices_at: int
    shared_bytes: int
    columns: int = 0
    group: int = 0
    brought: int = 0
    brought_at: int = 0
    held: int = 0

    @property
    def label(self) -> str:
        """What tells a kernel from the others of its plan: "convolve", "columns1"."""
        return f"{self.role}{self.stage or ''}"


def plain(part: Kernel | Stage) -> dict[str, Any]:
    """What JSON says of a kernel, or of a stage: that nothing is brought to it or held, and that its matrix
    does all, goes without saying."""
    raw, unsaid = asdict(part), {"brought": 0, "brought_at": 0, "held": 0, "butterflies": 1}
    return {name: x for name, x in raw.items() if name not in unsaid or x != unsaid[name]}


@dataclass(frozen=True)
class Plan:
    """The decisions for a problem on a target.

    ``transform`` is N, the complex length; ``packing`` "right-angle" or "batch-pair" (design 1.3);
    ``compute_format``: operands and sums; of engine "mma" SCALED (design 1.8) or BF16_FP32, of "wmma"
    operands in the storage type with sums in fp32, rows of fp16 scaled as well, of "simt" FP32.
    ``fold``: the period of a circular convolution in right-angle packing, which its filter brings about
    (planner/fold.py); 0 for the others. ``chunk_bytes`` bounds the workspace of the device class.
    ``filter``: the kernels that make a filter's spectrum (a candidate has none yet). ``outputs``: 2 where
    each transform is stored twice, with a gate each (planner/twins.py). ``whole``: the kernel that does
    the work of all the others in one launch, where there is one, and ``cluster`` blocks that share a
    transform there; 0: as many as planner/whole.py finds. ``sections``: transforms of a row, and ``matrix``
    which of them each section of the result takes: LOWER, itself and earlier ones, FULL or CIRCULANT
    (planner/sections.py). ``spread``: the blocks of a cluster share them (planner/spread.py).
    """

    problem: Problem
    target: str
    transform: int
    packing: str
    memory_class: str
    engine: str
    compute_format: str
    fold: int
    stages: tuple[Stage, ...]
    kernels: tuple[Kernel, ...]
    tables: tuple[Table, ...]
    chunk_bytes: int
    filter: Filter = field(default_factory=Filter)
    schema: int = field(default=SCHEMA)
    outputs: int = 1
    whole: Kernel | None = None
    cluster: int = 0
    sections: int = 1
    matrix: str = LOWER
    spread: bool = False

    def __post_init__(self) -> None:
        product = 1
        for stage in self.stages:
            product *= stage.radix
            if (stage.lines % TILE and self.engine != SIMT) or product * stage.rest != self.transform:
                raise InternalError(f"stage {stage} does not belong to a transform of {self.transform}")

    @property
    def order(self) -> int:
        return len(self.stages)

    @property
    def points(self) -> int:
        """Complex points of the transforms of a row: of all its sections."""
        return self.sections * self.transform

    @property
    def distances(self) -> int:
        """Of sections, from one to another: each has a spectrum of the filter."""
        return 2 * self.sections - 1 if self.matrix == FULL else self.sections

    @property
    def factors(self) -> tuple[int, ...]:
        return tuple(s.radix for s in self.stages)

    @property
    def real_input(self) -> bool:
        """The first stage reads and the last writes real numbers (right-angle)."""
        return self.packing == "right-angle"

    @property
    def scaled(self) -> bool:
        """Rows are scaled by powers of two on their way in (design 1.8)."""
        return self.compute_format in (SCALED, FP16_FP32)

    @property
    def operand(self) -> str:
        """The type of matrix operands, and of the workspace between kernels."""
        return "fp16" if self.scaled else self.problem.dtype

    @property
    def wide_sums(self) -> bool:
        """Results between stages of radices above 16, sums of more than 16 products, come in fp32.

        That costs conversions and registers and spares scaled fp16 a twentieth of its error: worth it in
        three stages and more where more noise falls on a result than its own, that of a partner in a batch
        pair or of what a fold throws away.
        """
        return not self.problem.causal and self.order > 2 and self.sections == 1

    def wide_columns(self, stage: Stage) -> bool:
        """Results of columns, in device memory or a block's, come in fp32: as ``wide_sums`` has it, and of
        radix 128 in every plan; not those that butterflies bring together, each a sum of 16 products.

        The running sum of n instructions is rounded n times, in fp16 by r at the size that it has by then:
        r^2 (1 + 2 + ... + n) / n = r^2 (n + 1) / 2. Real columns of radix 128 take n = 8: 4.5 r^2 of the
        22 r^2 that a transform of 4 194 304 points loses in all; in fp32 it is r^2.
        """
        return stage.butterflies == 1 and (stage.radix >= TALL or (self.wide_sums and stage.radix > TILE))

    def halves_back(self, stage: Stage) -> bool:
        """A stage is taken by halves on the way back as well.

        Not by a warp by itself: results of the last stage have both halves in one tile there
        (fragments.result_order), and those of the stage before come in fp32, too many for its registers.
        """
        return stage.halves and self.block_stage

    @property
    def point_bytes(self) -> int:
        """Bytes of a complex number in the workspace between kernels, and in a filter's spectrum."""
        return 8 if self.engine == SIMT else 4

    @property
    def spectrum_type(self) -> str:
        """The type of a filter's spectrum, which the "mma" engine never takes as an operand."""
        return "fp16" if self.engine == "mma" else self.problem.dtype  # of "simt", too: fp32

    @property
    def rows_per_item(self) -> int:
        """Batch rows that share one transform."""
        return 1 if self.real_input else 2

    @property
    def abreast(self) -> int:
        """Neighbouring channels whose transforms a block takes at a time, their columns in one tile."""
        return self.stages[0].lines // self.stages[0].radix if self.engine == "mma" else 1

    @property
    def device_stages(self) -> tuple[Stage, ...]:
        return tuple(s for s in self.stages if s.place == "device")

    @property
    def inner(self) -> tuple[Stage, ...]:
        """The stages that run inside one kernel: [block stage,] tile rows, tile columns."""
        return tuple(s for s in self.stages if s.place != "device")

    @property
    def body(self) -> Kernel:
        """The kernel that runs the inner stages."""
        return next(k for k in self.kernels if k.role in ("convolve", "rows"))

    @property
    def strip_peaks(self) -> int:
        """Strips of a transform's columns in device memory, where each stands in the workspace scaled by its
        own peak; 0 where all are scaled by that of their row, which a kernel finds before."""
        before = any(kernel.role == "peaks" for kernel in self.kernels)
        if before or self.engine != "mma" or not self.scaled or not self.device_stages:
            return 0
        return self.stages[0].rest // (8 * self.kernel("columns").columns)

    @property
    def block_stage(self) -> bool:
        """The inner stages start with columns of a block's shared memory."""
        return len(self.inner) > 2

    @property
    def row_length(self) -> int:
        """Length of the transform that one kernel finishes by itself."""
        length = 1
        for s in self.inner:
            length *= s.radix
        return length

    @property
    def unscaled(self) -> float:
        """What the scales of the stages leave of 1/N."""
        return math.prod(s.scale for s in self.stages) ** -2 / self.transform

    @property
    def exact_mean(self) -> bool:
        """Frequency 0 of a filter's spectrum is stored as a power of two (planner/matrix_scale.py): of batch
        pairs, where one kernel makes the spectrum, or none does and one could."""
        return not self.real_input and len(self.filter.kernels) < 2 and self.transform <= BLOCK_POINTS

    @cached_property
    def given_back(self) -> float:
        """By what results are multiplied between what white noise and what means would have, where rounded
        matrices make the former smaller (planner/matrix_scale.py)."""
        if self.real_input or self.problem.dtype != "fp16":
            return 1.0
        return math.prod(kept(s.radix, s.scale, self.operand) for s in self.stages) ** -0.5

    @property
    def residual(self) -> float:
        """What undoes the scales of the stages and 1/N, applied once at the output (fp32)."""
        return self.unscaled * self.given_back

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """What the kernels are called: what they are, then a digest."""
        p = self.problem
        return (
            f"fftgen_{'conv' if self.outputs == 1 else 'twin'}_n{p.length}_{p.mode}_{p.dtype}_{self.engine}_"
            f"{self.target.replace('_', '')}_{self.digest[:8]}"
        )

    def entry(self, kernel: Kernel) -> str:
        """The ``extern "C"`` name of a kernel."""
        if kernel.role == "convolve":
            return self.name
        suffix = f"{kernel.role}{kernel.stage}" if kernel.role.startswith("columns") else kernel.role
        return f"{self.name}_{suffix}"

    @property
    def every_kernel(self) -> tuple[Kernel, ...]:
        """The kernels of the convolution: those of its stages, and the one that does them all."""
        return self.kernels if self.whole is None else (*self.kernels, self.whole)

    def filter_entry(self, kernel: FilterKernel) -> str:
        """The ``extern "C"`` name of a kernel of the filter's transform."""
        return f"{self.name}_{kernel.role}"

    def kernel(self, role: str, stage: int = 0) -> Kernel:
        for k in self.kernels:
            if k.role == role and (not stage or k.stage == stage):
                return k
        raise InternalError(f"plan {self.name} has no kernel {role}{stage or ''}")

    def table(self, kind: str, stage: int) -> Table:
        for t in self.tables:
            if t.kind == kind and t.stage == stage:
                return t
        raise InternalError(f"plan {self.name} has no table {kind} of stage {stage}")

    @property
    def table_bytes(self) -> int:
        ends = [t.offset + t.nbytes for t in self.tables]
        return max(ends + [t.offset + t.nbytes for t in self.filter.tables])

    def __str__(self) -> str:
        p = self.problem
        places = {"device": "d", "block": "b", "warp": "w"}
        factors = "·".join(f"{s.radix}{places[s.place]}" for s in self.stages)
        fold = f" fold {self.fold}" if self.fold else ""
        twice = " two outputs" if self.outputs == 2 else ""
        fold += f" {self.sections} sections{MATRICES[self.matrix]}" if self.sections > 1 else ""
        fold += " spread" if self.spread else ""
        shape = " ".join(f"{k.label}[{k.warps}w {k.shared_bytes}B]" for k in self.every_kernel)
        return (
            f"{p.mode} {p.length} {p.dtype} {self.target} | N={self.transform}={factors} "
            f"{self.packing}{fold}{twice} {self.memory_class} {self.engine} {self.compute_format} | {shape}"
        )

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, so that equal plans give equal bytes.

        A single output goes without saying, and so do launches stage by stage and clusters of the usual size:
        older plans know no others.
        """
        raw = asdict(self)
        raw["kernels"] = [plain(kernel) for kernel in self.kernels]
        raw["stages"] = [plain(stage) for stage in self.stages]
        if self.outputs == 1:
            del raw["outputs"]
        if self.whole is None:
            del raw["whole"]
        else:
            raw["whole"] = plain(self.whole)
        if not self.cluster:
            del raw["cluster"]
        if self.sections == 1:
            del raw["sections"]
        if self.matrix == LOWER:
            del raw["matrix"]
        if not self.spread:
            del raw["spread"]
        return json.dumps(raw, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan of ``to_json``. Raises ArtifactError when the text is not one of this schema."""
        try:
            raw: dict[str, Any] = json.loads(text)
            schema = raw["schema"]
            if schema != SCHEMA:
                raise ArtifactError(
                    f"plan schema {schema} is not the supported one ({SCHEMA}): "
                    "rebuild with `fftgen build`, or use the fftgen version that wrote it"
                )
            raw["problem"] = Problem(**raw["problem"])
            raw["stages"] = tuple(Stage(**s) for s in raw["stages"])
            raw["kernels"] = tuple(Kernel(**k) for k in raw["kernels"])
            raw["tables"] = tuple(Table(**{**t, "shape": tuple(t["shape"])}) for t in raw["tables"])
            raw["filter"] = Filter.of(raw["filter"])
            if raw.get("whole") is not None:
                raw["whole"] = Kernel(**raw["whole"])
            return Plan(**raw)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"not a plan: {error}: rebuild with `fftgen build`") from error
