"""The argument block of a launch: the same bytes for a GPU and for the simulator.

The fields mirror ``Args`` in templates/device/arguments.cuh; a test compiles that header and compares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fftgen.bounded import Bounded
from fftgen.errors import DriverError
from fftgen.planner.filter import FilterLaunch, filter_launches
from fftgen.planner.finish import finish_launches
from fftgen.planner.gradient_launch import GradientLaunch
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.launch import Launch, items_per_channel
from fftgen.planner.plan import Plan

# Six signals (address, batch stride, channel stride), five addresses, eleven 32-bit numbers.
_NUMBERS = struct.Struct("<7i2I2i4x")
_ARGS = struct.Struct("<" + 6 * "Qqq" + "5Q" + f"{_NUMBERS.size}s")
ARGS_BYTES = _ARGS.size
# The same with all but the addresses packed before.
_ADDRESSED = struct.Struct("<" + 6 * "Q16s" + "5Q" + f"{_NUMBERS.size}s")

# FilterArgs in templates/device/filter.cuh: two fields of each filter, six addresses, four 32-bit numbers.
_FILTER_ARGS = struct.Struct("<" + 2 * "Qq" + "6Q" + "4i")
FILTER_ARGS_BYTES = _FILTER_ARGS.size

# GradientArgs in templates/device/gradient.cuh: two Args, two addresses, two 32-bit numbers.
_GRADIENT_ARGS = struct.Struct("<" + "2Q" + "2i")
GRADIENT_ARGS_BYTES = 2 * ARGS_BYTES + _GRADIENT_ARGS.size

# FinishArgs in templates/device/finish.cuh: five addresses, four 32-bit numbers.
_FINISH_ARGS = struct.Struct("<" + "5Q" + "4i")
FINISH_ARGS_BYTES = _FINISH_ARGS.size


class Signal(NamedTuple):
    """A (batch, channel, time) tensor as a kernel sees it: address (0: absent) and strides in elements."""

    address: int = 0
    batch: int = 0
    channel: int = 0


ABSENT = Signal()


class Call(NamedTuple):
    """All that one call of a convolution hands to its kernels. Addresses are device addresses.

    ``twin``: a second result, for kernels with two outputs; it differs from ``y`` by its gate. ``results``:
    time steps of results that are wanted, the first ones (None: as many as of signals).
    """

    batch: int
    channels: int
    length: int
    u: Signal
    y: Signal
    spectrum: int
    scale: int
    tables: int
    in_gate: Signal = ABSENT
    out_gate: Signal = ABSENT
    twin_gate: Signal = ABSENT
    twin: Signal = ABSENT
    workspace: int = 0
    peaks: int = 0
    vector: bool = False
    results: int | None = None


class Launcher(Protocol):
    """Whatever can run a kernel of a loaded module: the CUDA driver, or the simulator."""

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        """Run ``entry`` on a one-dimensional grid; ``params`` is its single argument, ``Args`` by value.

        ``cluster``: blocks of a cluster, which divide the grid; 1: none are formed.
        """


def argument_block(plan: Plan, call: Call, launch: Launch) -> bytes:
    """``Args`` of one launch, packed."""
    per_channel = items_per_channel(plan, call.batch)
    return _ARGS.pack(
        *call.u,
        *call.in_gate,
        *call.out_gate,
        *call.y,
        *call.twin_gate,
        *call.twin,
        call.spectrum,
        call.scale,
        call.tables,
        call.workspace,
        call.peaks,
        _NUMBERS.pack(
            launch.first,
            launch.items,
            per_channel,
            call.batch,
            call.length,
            launch.run,
            call.vector,
            *reciprocal(per_channel),
            per_channel * call.channels,
            call.length if call.results is None else call.results,
        ),
    )


def reciprocal(divisor: int) -> tuple[int, int]:
    """The multiplier m < 2^32 and the shift s of which n // divisor is (2 n m >> 32) >> s for 0 <= n < 2^31.

    Source: Granlund and Montgomery, "Division by invariant integers using multiplication", theorem 4.2.
    """
    shift = (divisor - 1).bit_length()
    return -(-(1 << 31 + shift) // divisor), shift


# What changes from call to call of the same shapes and strides, 0 where absent, in this order: u, in_gate,
# out_gate, y, twin_gate, twin, spectrum, scale, tables, workspace, peaks.
Addresses = tuple[int, int, int, int, int, int, int, int, int, int, int]


class Step:
    """A launch of a call, its argument block packed but for the addresses."""

    __slots__ = ("_strides", "_tail", "launch")

    def __init__(self, plan: Plan, call: Call, launch: Launch) -> None:
        """Of ``call`` shapes, strides and ``vector`` count."""
        block = argument_block(plan, call, launch)
        self.launch = launch
        self._strides = tuple(block[24 * i + 8 : 24 * i + 24] for i in range(6))
        self._tail = block[-_NUMBERS.size :]

    def params(self, at: Addresses) -> bytes:
        """``Args``, with these addresses."""
        u, in_gate, out_gate, y, twin_gate, twin, spectrum, scale, tables, workspace, peaks = at
        of_u, of_in, of_out, of_y, of_twin_gate, of_twin = self._strides
        return _ADDRESSED.pack(
            u, of_u,
            in_gate, of_in,
            out_gate, of_out,
            y, of_y,
            twin_gate, of_twin_gate,
            twin, of_twin,
            spectrum, scale, tables, workspace, peaks,
            self._tail,
        )  # fmt: skip


def run(steps: Iterable[Step], at: Addresses, launcher: Launcher) -> None:
    """Carry out a call: its launches (planner/launch.py), in order, on the launcher."""
    for step in steps:
        launch = step.launch
        params = step.params(at)
        launcher.launch(launch.entry, launch.grid, launch.block, launch.shared_bytes, params, launch.cluster)


class GradientStep:
    """A launch of a gradient's kernels: the argument blocks of its two signals, and what joins them."""

    __slots__ = ("_parts", "_side", "_v", "_workers", "_x", "launch")

    def __init__(self, plan: Plan, x: Call, v: Call, made: GradientLaunch) -> None:
        """``x``, ``v``: the two signals, as a convolution takes them; as of ``Step``."""
        self.launch = made.launch
        self._x, self._v = Step(plan, x, made.launch), Step(plan, v, made.launch)
        self._side, self._parts, self._workers = made.side, made.parts, made.workers

    def params(self, x: Addresses, v: Addresses, sums: int, spectra: int) -> bytes:
        """``Args`` of a kernel for one signal, ``GradientArgs`` of that for both."""
        if self._side >= 0:
            return self._v.params(v) if self._side else self._x.params(x)
        joined = _GRADIENT_ARGS.pack(sums, spectra, self._parts, self._workers)
        return self._x.params(x) + self._v.params(v) + joined


def run_gradient(
    steps: Iterable[GradientStep], x: Addresses, v: Addresses, sums: int, spectra: int, launcher: Launcher
) -> None:
    """Make the parts of a filter's gradient, and those of signals (planner/gradient_launch.py)."""
    for step in steps:
        launch, params = step.launch, step.params(x, v, sums, spectra)
        launcher.launch(launch.entry, launch.grid, launch.block, launch.shared_bytes, params, launch.cluster)


def clusters_refused(error: DriverError, steps: Iterable[Step | GradientStep]) -> bool:
    """Whether a call of these launches failed as a GPU, or a share of one, has no room for their clusters.

    What others have found out meanwhile does not count: several threads may be refused.
    """
    return error.code == DriverError.CLUSTERS and any(step.launch.cluster > 1 for step in steps)


class Taps(NamedTuple):
    """Filters as a kernel sees them: address (0: absent), elements between rows, taps of a row."""

    address: int = 0
    stride: int = 0
    taps: int = 0


NO_TAPS = Taps()


class FilterCall(NamedTuple):
    """All that the kernels of filters' spectra are handed. Addresses are device addresses, 0: absent.

    ``back`` acts backwards in time. ``distances``: of sections, each of which has a spectrum of every filter.
    """

    filter: Taps
    back: Taps
    channels: int
    skip: int
    planes: int
    scale: int
    tables: int
    workspace: int = 0
    peaks: int = 0
    distances: int = 1


def run_filter(plan: Plan, call: FilterCall, launcher: Launcher) -> None:
    """Make the spectra of a call's filters: the launches of planner/filter.py, in order."""
    address, stride, taps = call.filter
    back_address, back_stride, back_taps = call.back
    for launch, entry in _filter_launches(plan, call.distances * call.channels):
        params = _FILTER_ARGS.pack(
            address,
            stride,
            back_address,
            back_stride,
            call.skip,
            call.planes,
            call.scale,
            call.tables,
            call.workspace,
            call.peaks,
            launch.first,
            taps,
            max(0, back_taps - 1),  # the first tap acts forwards as well
            call.channels,
        )
        kernel = launch.kernel
        launcher.launch(entry, launch.grid, kernel.threads, kernel.shared_bytes, params)


# Launches of the latest shapes, by the digest of their plan: planning them takes longer than packing them.
_planned: Bounded[tuple[object, ...], tuple[tuple[FilterLaunch, str], ...]] = Bounded()


def _filter_launches(plan: Plan, spectra: int) -> tuple[tuple[FilterLaunch, str], ...]:
    """The launches that make so many spectra, and the kernels they are of."""
    key = (plan.digest, spectra)
    return _planned.get(key) or _keep(key, plan, filter_launches(plan.filter, plan.transform, spectra))


def _finish_launches(
    plan: Plan, channels: int, reach: int, period: int
) -> tuple[tuple[FilterLaunch, str], ...]:
    """The same of those that make taps of sums."""
    key = (plan.digest, channels, reach, period)
    return _planned.get(key) or _keep(
        key, plan, finish_launches(plan.filter, plan.transform, channels, reach, period)
    )


def _keep(
    key: tuple[object, ...], plan: Plan, made: Iterable[FilterLaunch]
) -> tuple[tuple[FilterLaunch, str], ...]:
    return _planned.keep(key, tuple((launch, plan.filter_entry(launch.kernel)) for launch in made))


@dataclass(frozen=True)
class FinishCall:
    """All that the kernels at the end of a filter's gradient are handed. Addresses are device addresses.

    ``tails``: where ``comes_around`` (planner/finish.py); ``workspace``: where one block does not hold a
    transform; 0: absent.
    """

    sums: int
    lags: int
    tables: int
    channels: int
    parts: int
    reach: int
    period: int = 0
    tails: int = 0
    workspace: int = 0


def run_finish(found: Gradient, call: FinishCall, launcher: Launcher) -> None:
    """Take the sums of a gradient to taps: the launches of planner/finish.py, in order."""
    for launch, entry in _finish_launches(found.plan, call.channels, call.reach, call.period):
        params = _FINISH_ARGS.pack(
            call.sums,
            call.lags,
            call.tails,
            call.tables,
            call.workspace,
            launch.first,
            call.parts,
            call.reach,
            call.period,
        )
        kernel = launch.kernel
        launcher.launch(entry, launch.grid, kernel.threads, kernel.shared_bytes, params)
