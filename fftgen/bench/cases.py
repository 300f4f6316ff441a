"""What is measured: the problem set of design note 5.1, scaled to what memory holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fftgen.dtypes import dtype as find_dtype
from fftgen.errors import InputError
from fftgen.problem import MODES, Problem

BATCH, CHANNELS = 64, 768
LENGTHS = tuple(1 << e for e in range(8, 23))  # 256 .. 4M
DIRECTIONS = ("forward", "backward")

# Device memory per element of u that the hungriest contender of a row needs: the published baseline,
# complex fp32 transforms of 1 (circular) or 2 (causal) times the length. Spectra of signal and product,
# input and output of the transform and its scratch: 40 bytes per point; two sets of u and gates, their
# outputs, fp32 copies and a float64 reference: 40 more.
#
# Backward, causal (circular transforms are half as long, and so are the figures marked *): two sets of u,
# gates and cotangent: 16. The graph of a forward pass keeps the padded signal in fp32, 8*, its spectrum, 16*,
# what the output gate multiplies, a view of the complex inverse transform, 16*, and y, 2; it stands for both
# sets: 84. The backward pass itself holds the cotangent's transform, its products with both conjugated
# spectra and one conjugate written out, 64*, and the library's scratch, 16*. Gradients of both sets: 12.
# Together 192 (112). While results are checked, one graph stands, and the float64 gradients, 24.
WORKING_BYTES = {
    "forward": {"causal": 120, "circular": 80},
    "backward": {"causal": 200, "circular": 120},
}
SHARE = 0.9  # of free memory
FEW_CHANNELS = 8  # below, the batch shrinks before the channels do

# Backward rows of a suite: warps' transforms, blocks' ones, and one with stages in device memory. (At 1M the
# row took 38 s of a suite's 386.)
BACKWARD_LENGTHS = (256, 1024, 2048, 4096, 32768, 65536)

# Signals that are cut into windows for filters of so many taps.
SHORT_LENGTHS = (65536, 1048576)
SHORT_TAPS = (128, 4096)

# The order in which a run that may not finish takes lengths: those that published figures name first.
LANDMARKS = (4096, 1024, 32768, 256, 1048576, 8192, 16384, 65536, 2048, 512, 262144, 4194304)
# A block's transform, a warp's, and one with stages in device memory: of types that would come late.
EARLY = (4096, 1024, 65536)


@dataclass(frozen=True)
class Case:
    """One convolution to be measured: u, gates, y ``(batch, channels, length)``, k ``(channels, taps)``.

    ``taps``: 0: as many as steps. ``gated``: both gates. ``direction``: "forward", y; or "backward", the
    gradients of u, k and the gates for a given cotangent v of y's shape and dtype: the backward pass alone,
    of a forward pass that is done.
    """

    problem: Problem
    gated: bool
    batch: int = BATCH
    channels: int = CHANNELS
    direction: str = "forward"
    taps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.taps <= self.problem.length:
            raise InputError(f"{self.taps} taps: choose 1 to {self.problem.length}, the length")
        if self.batch < 1 or self.channels < 1:
            raise InputError(f"batch {self.batch} and channels {self.channels} must be at least 1")
        if self.direction not in DIRECTIONS:
            raise InputError(f"direction {self.direction!r}: choose from {', '.join(DIRECTIONS)}")

    def __str__(self) -> str:
        p = self.problem
        gates = "gated" if self.gated else "ungated"
        short = f", {self.taps} taps," if self.taps else ""
        return f"{p.mode} {p.length} {p.dtype}{short} {gates} {self.direction}"

    @property
    def about(self) -> dict[str, Any]:
        """What is measured, as plain data, but for the rows that memory holds."""
        short = {"taps": self.taps} if self.taps else {}
        return {**asdict(self.problem), **short, "gated": self.gated, "direction": self.direction}

    @property
    def length(self) -> int:
        return self.problem.length

    @property
    def elements(self) -> int:
        return self.batch * self.channels * self.length

    @property
    def points(self) -> int:
        """Length of a zero-padded library transform that does this."""
        return 2 * self.length if self.problem.causal else self.length

    @property
    def floor_bytes(self) -> int:
        """The least device-memory traffic (design 2.1).

        Forward: u and both gates read, y written. Backward: v, u and both gates read, the gradients of u and
        of both gates written; u is read without gates as well, for the filter's gradient. The filter and its
        gradient are not counted: their share goes to zero with the batch.
        """
        size = find_dtype(self.problem.dtype).nbytes
        if self.direction == "backward":
            return size * self.elements * (7 if self.gated else 3)
        return size * self.elements * (4 if self.gated else 2)

    @property
    def working_bytes(self) -> int:
        """Device memory per element of u that the hungriest contender needs."""
        return WORKING_BYTES[self.direction][self.problem.mode]

    def scaled(self, free_bytes: int) -> Case:
        """The same case on as many rows as memory holds.

        Channels are halved first, since the batch decides what the filter's transform weighs; below
        FEW_CHANNELS the batch, then channels again. Raises InputError when not even one row fits.
        """
        most = int(SHARE * free_bytes) // self.working_bytes
        case = self
        while case.elements > most:
            if case.channels > FEW_CHANNELS:
                case = replace(case, channels=max(FEW_CHANNELS, case.channels // 2))
            elif case.batch > 2:
                case = replace(case, batch=max(2, case.batch // 2))
            elif case.channels > 1:
                case = replace(case, channels=case.channels // 2)
            elif case.batch > 1:
                case = replace(case, batch=1)
            else:
                raise InputError(f"{self}: {free_bytes} bytes of free memory do not hold a single row")
        return case


def problem_set(
    lengths: Iterable[int] = LENGTHS,
    dtypes: Sequence[str] = ("bf16", "fp16"),
    modes: Sequence[str] = MODES,
    gated: Sequence[bool] = (True, False),
    batch: int = BATCH,
    channels: int = CHANNELS,
    directions: Sequence[str] = ("forward",),
    taps: int = 0,
) -> list[Case]:
    """Every combination, in the order of dtypes, gates, modes and lengths, inside the directions."""
    return [
        Case(Problem(mode, length, dtype), gate, batch, channels, direction, taps)
        for direction in directions
        for dtype in dtypes
        for gate in gated
        for mode in modes
        for length in lengths
    ]


def backward_rows(cases: Iterable[Case], lengths: Iterable[int] = BACKWARD_LENGTHS) -> list[Case]:
    """The backward rows of a suite, beside its forward cases: gated causal bf16 at ``lengths``."""
    return [replace(c, direction="backward") for c in _published(cases, lengths)]


def _published(cases: Iterable[Case], lengths: Iterable[int]) -> list[Case]:
    """Of forward cases the gated causal ones in bf16 at ``lengths``."""
    wanted = set(lengths)
    return [
        c for c in cases if c.gated and c.problem.causal and c.problem.dtype == "bf16" and c.length in wanted
    ]


def wide_rows(cases: Iterable[Case], lengths: Iterable[int] = EARLY) -> list[Case]:
    """The rows of a suite in fp32, beside its forward cases: gated causal ones at ``lengths``."""
    return [replace(c, problem=replace(c.problem, dtype="fp32")) for c in _published(cases, lengths)]


def short_rows(cases: Iterable[Case]) -> list[Case]:
    """The rows of a suite with filters much shorter than their signals (planner/windows.py), both ways."""
    return [
        replace(c, taps=taps, direction=direction)
        for c in _published(cases, SHORT_LENGTHS)
        for taps in SHORT_TAPS
        for direction in DIRECTIONS
    ]


def by_importance(cases: Iterable[Case]) -> list[Case]:
    """The order for a run that may be cut short: the published problem (gated, bf16) at its lengths first.

    A few rows in fp16 and fp32 come right after its causal ones: at the end of all they would never run.
    """

    def rank(case: Case) -> tuple[float, int, int, int]:
        p = case.problem
        group = (p.dtype != "bf16") * 4.0 + (not case.gated) * 2 + (not p.causal)
        if p.dtype != "bf16" and case.gated and p.length in EARLY:
            group = 0.25 + 0.5 * (not p.causal) + 0.125 * (p.dtype == "fp32")
        if case.taps:
            group = 0.125
        known = p.length in LANDMARKS
        place = LANDMARKS.index(p.length) if known else len(LANDMARKS)
        return (group, place, p.length, DIRECTIONS.index(case.direction))

    return sorted(cases, key=rank)
