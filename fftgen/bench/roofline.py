"""A picture of predicted times: for every kernel a bar for each resource, and its memory floor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fftgen.bench import drawing
from fftgen.errors import InputError
from fftgen.planner.cost import RESOURCES, Cost
from fftgen.roofline import Roofline

BAR = 0.16  # of the distance between kernels


def draw(found: Sequence[Roofline], path: Path) -> None:
    """Write one picture, a line of panels for every plan: the convolution's kernels and the filter's.

    The highest bar of a kernel is what bounds it. Raises ToolchainError without matplotlib, InputError when
    there is nothing to draw or the file cannot be written.
    """
    if not found:
        raise InputError("no plan fits: there is nothing to draw")
    figure = drawing.figure(11, 3.4 * len(found))
    axes = figure.subplots(len(found), 2, squeeze=False, width_ratios=(1.4, 1))
    for (left, right), roofline in zip(axes, found, strict=True):
        _panel(left, roofline, roofline.convolution, f"ns per {roofline.unit}")
        _panel(right, roofline, roofline.spectrum, "ns per filter")
        p = roofline.plan.problem
        left.set_title(
            f"{roofline.gradient.label if roofline.gradient else p.mode} {p.length} {p.dtype}, "
            f"{roofline.plan.engine}, {roofline.target.chip}",
            loc="left",
            fontsize="medium",
        )
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.suptitle("Predicted times by resource (a model: nothing here is measured)")
    drawing.save(figure, path)


def _panel(axis: Any, roofline: Roofline, of: Cost, label: str) -> None:
    if not of.kernels:
        axis.set_axis_off()
        return
    for number, name in enumerate(RESOURCES):
        places = [i + BAR * (number - (len(RESOURCES) - 1) / 2) for i in range(len(of.kernels))]
        heights = [1e9 * k.seconds[name] for k in of.kernels]
        axis.bar(places, heights, BAR, label=name, color=f"C{number}")
    for i, k in enumerate(of.kernels):
        axis.plot((i - 0.45, i + 0.45), (1e9 * roofline.floor(k),) * 2, color="black", linewidth=1)
    axis.plot((), (), color="black", linewidth=1, label="memory floor")
    axis.set_xticks(range(len(of.kernels)), [k.name for k in of.kernels], fontsize="small")
    axis.set_ylabel(label)
    axis.grid(True, axis="y", alpha=0.3)
