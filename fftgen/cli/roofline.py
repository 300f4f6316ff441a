"""``--roofline`` of ``fftgen plan`` and ``fftgen inspect``: tables, JSON and a picture of predicted times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fftgen.cli.options import Place, table
from fftgen.errors import InputError
from fftgen.planner.cost import RESOURCES, Cost, KernelCost, in_one_launch
from fftgen.planner.launch import check_rows
from fftgen.roofline import Roofline

Function = TypeVar("Function", bound=Callable[..., Any])
HEADS = ("device", "L2", "shared", "tensor", "issue")  # of RESOURCES, short


def options(function: Function) -> Function:
    """``--roofline``, ``--gated``, ``--plot``, ``--batch`` and ``--channels``."""
    function = click.option("--channels", type=int, help="With --batch and --roofline: of the call.")(
        function
    )
    function = click.option(
        "--batch", type=int, help="With --roofline and --channels: predict a whole call, too."
    )(function)
    function = click.option(
        "--plot",
        type=Place(path_type=Path),
        help="With --roofline: draw the predicted times (.png, .svg; matplotlib).",
    )(function)
    function = click.option(
        "--gated",
        is_flag=True,
        help="With --roofline: of calls whose input and results are gated.",
    )(function)
    return click.option(
        "--roofline",
        is_flag=True,
        help="What bounds each kernel: its work, predicted times by resource, the memory floor.",
    )(function)


def check(
    roofline: bool, gated: bool, plot: Path | None, batch: int | None, channels: int | None
) -> tuple[int, int] | None:
    """The shape of the call to predict, if one is asked for; before anything is done.

    Raises InputError for options that need others and for a picture that cannot be written, ToolchainError
    where --plot has nothing to draw with.
    """
    if not roofline and (gated or plot is not None or batch is not None or channels is not None):
        raise InputError("--gated, --plot, --batch and --channels go with --roofline")
    if (batch is None) != (channels is None):
        raise InputError("--batch and --channels go together: the shape of a call")
    if plot is not None:
        from fftgen.bench.drawing import require

        require(plot)
    if batch is None or channels is None:
        return None
    if batch < 1 or channels < 1:
        raise InputError(f"a call has at least one row and one channel, got {batch} and {channels}")
    check_rows(batch, channels)
    return batch, channels


def draw(found: Sequence[Roofline], path: Path) -> None:
    """Write the picture."""
    from fftgen.bench.roofline import draw as picture

    picture(found, path)


def text(found: Roofline) -> str:
    """The tables of one plan."""
    taps = min(found.plan.problem.length, found.plan.transform)
    parts = [
        f"predicted for {found.target.chip}, not measured; {found.registers}"
        + (", instructions counted in machine code" if found.compiled else "")
        + f"; ns per {found.unit}",
        _times(found, found.convolution),
        _work(found.convolution),
    ]
    if found.plan.whole is not None and not found.gradient:
        one = in_one_launch(found.plan, found.convolution, found.target)
        parts.append(
            f"with all stages by one launch: {sum(k.work.l2_bytes for k in one.kernels)} bytes of the L2, "
            f"{one.device_bytes} of device memory; {1e9 * one.predicted:.2f} ns"
        )
    if found.note:
        parts.append(found.note)
    if found.target.assumed:
        parts.append(f"assumed, not from a datasheet: the rate of {' and of '.join(found.target.assumed)}")
    if found.spectrum.kernels:
        parts += [
            f"the filter's spectrum, ns per channel ({taps} taps)",
            _times(found, found.spectrum),
            _work(found.spectrum),
        ]
    if found.call is not None:
        c = found.call
        state = "without what comes from sums to taps" if found.gradient else "spectrum prepared"
        parts.append(
            f"a call of batch {c.batch}, {c.channels} channels, {state}: {1e3 * c.time:.3f} ms in "
            f"{c.launches} launch{'es' if c.launches > 1 else ''} ({1e6 * c.fixed:.0f} us for launching, "
            f"{1e6 * c.last_wave:.0f} us for waves that do not fill the chip, {1e6 * c.showing:.0f} us that "
            "the busiest resource does not hide)"
        )
    return "\n".join(parts)


def bound(of: Cost) -> str:
    """What bounds the kernels; of several, the resource that bounds them longest, and how long."""
    if len(of.kernels) == 1:
        return f"bound by {of.bound}"
    return f"bound longest by {of.bound} ({1e9 * of.bounding[of.bound]:.2f} ns)"


def _times(found: Roofline, of: Cost) -> str:
    head = ("kernel", *HEADS, "not hidden", "time", "bound by", "of the memory floor", "warps")
    rows: list[tuple[str, ...]] = [head]
    for k in of.kernels:
        times = (f"{1e9 * k.seconds[name]:.2f}" for name in RESOURCES)
        rows.append((k.name, *times, *_sums(k), k.bound, _share(found, k), str(k.resident)))
    if len(of.kernels) > 1:
        times = (f"{1e9 * of.seconds[name]:.2f}" for name in RESOURCES)
        rows.append(("all", *times, *_sums(of), f"longest {of.bound}", _share(found, of), ""))
    return table(rows)


def _sums(of: Cost | KernelCost) -> tuple[str, str]:
    """What the busiest resource does not hide of the others, and both together: the predicted time."""
    return f"{1e9 * of.showing:.2f}", f"{1e9 * of.predicted:.2f}"


def _share(found: Roofline, of: Cost | KernelCost) -> str:
    """The memory floor over the predicted time; nothing for a kernel that only works on the L2."""
    return f"{found.fraction(of):.0%}" if found.floor(of) else "-"


def _work(of: Cost) -> str:
    head = ("kernel", "device bytes", "L2 bytes", "shared bytes", "16x16x16 products", "instructions")
    rows: list[tuple[str, ...]] = [head]
    for k in of.kernels:
        w = k.work
        numbers = (w.device_bytes, w.l2_bytes, w.pipe_bytes, w.tensor_ops, round(w.instructions))
        rows.append((k.name, *map(str, numbers)))
    return table(rows)
