"""The argument block of a launch: the same bytes for a GPU and for the simulator.

The fields mirror ``Args`` in templates/device/signal.cuh; a test compiles that header and compares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fftgen.planner.filter import FilterLaunch, filter_launches
from fftgen.planner.finish import finish_launches
from fftgen.planner.gradient import Gradient, GradientLaunch
from fftgen.planner.launch import Launch, items_per_channel
from fftgen.planner.plan import Plan

# Six signals (address, batch stride, channel stride), five addresses, eight 32-bit numbers.
_ARGS = struct.Struct("<" + 6 * "Qqq" + "5Q" + "8i")
ARGS_BYTES = _ARGS.size

# FilterArgs in templates/device/filter.cuh: two fields of each filter, six addresses, three 32-bit numbers.
_FILTER_ARGS = struct.Struct("<" + 2 * "Qq" + "6Q" + "3i4x")
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

    ``twin``: a second result, for kernels with two outputs; it differs from ``y`` by its gate.
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
        launch.first,
        launch.items,
        items_per_channel(plan, call.batch),
        call.batch,
        call.length,
        launch.run,
        call.vector,
        0,
    )


def run(plan: Plan, call: Call, launches: Iterable[Launch], launcher: Launcher) -> None:
    """Carry out a call: its launches (planner/launch.py), in order, on the launcher."""
    for launch in launches:
        params = argument_block(plan, call, launch)
        launcher.launch(launch.entry, launch.grid, launch.block, launch.shared_bytes, params, launch.cluster)


@dataclass(frozen=True)
class GradientCall:
    """All that a gradient's kernels are handed: two signals, as a convolution takes them, and results."""

    x: Call
    v: Call
    sums: int
    spectra: int = 0


def run_gradient(
    found: Gradient, call: GradientCall, launches: Iterable[GradientLaunch], launcher: Launcher
) -> None:
    """Make the parts of a filter's gradient, and those of signals: the launches of planner/gradient.py."""
    for made in launches:
        launch = made.launch
        if launch.kernel.role == "columns_inverse" and not (call.v if made.side else call.x).y.address:
            continue  # nobody wants the results of this side
        x, v = (argument_block(found.plan, signal, launch) for signal in (call.x, call.v))
        if made.side >= 0:
            params = v if made.side else x
        else:
            params = x + v + _GRADIENT_ARGS.pack(call.sums, call.spectra, made.parts, made.workers)
        launcher.launch(launch.entry, launch.grid, launch.block, launch.shared_bytes, params)


class Taps(NamedTuple):
    """Filters as a kernel sees them: address (0: absent), elements between rows, taps of a row."""

    address: int = 0
    stride: int = 0
    taps: int = 0


NO_TAPS = Taps()


class FilterCall(NamedTuple):
    """All that the kernels of filters' spectra are handed. Addresses are device addresses, 0: absent.

    ``back`` acts backwards in time.
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


def run_filter(plan: Plan, call: FilterCall, launcher: Launcher) -> None:
    """Make the spectra of a call's filters: the launches of planner/filter.py, in order."""
    for launch, entry in _filter_launches(plan, call.channels):
        params = _FILTER_ARGS.pack(
            *call.filter[:2],
            *call.back[:2],
            call.skip,
            call.planes,
            call.scale,
            call.tables,
            call.workspace,
            call.peaks,
            launch.first,
            call.filter.taps,
            max(0, call.back.taps - 1),  # the first tap acts forwards as well
        )
        kernel = launch.kernel
        launcher.launch(entry, launch.grid, kernel.threads, kernel.shared_bytes, params)


# Launches of the latest shapes, by the digest of their plan: planning them takes longer than packing them.
_planned: dict[tuple[str, int], tuple[tuple[FilterLaunch, str], ...]] = {}


def _filter_launches(plan: Plan, channels: int) -> tuple[tuple[FilterLaunch, str], ...]:
    """The launches that make ``channels`` filters' spectra, and the kernels they are of."""
    key = (plan.digest, channels)
    found = _planned.get(key)
    if found is None:
        if len(_planned) >= 1024:  # shapes that come and go must not pile up
            _planned.clear()
        planned = filter_launches(plan.filter, plan.transform, channels)
        found = _planned[key] = tuple((launch, plan.filter_entry(launch.kernel)) for launch in planned)
    return found


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
    plan = found.plan
    for launch in finish_launches(plan.filter, plan.transform, call.channels, call.reach, call.period):
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
        launcher.launch(plan.filter_entry(kernel), launch.grid, kernel.threads, kernel.shared_bytes, params)
