"""Plan -> CUDA source text. The only room that knows Jinja2; it binds names and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from fftgen import __version__
from fftgen.dtypes import dtype
from fftgen.planner import filter_tables, fragments, mma_kernels, mma_rules, simt, spread, twins
from fftgen.planner import gradient_plan as gradients
from fftgen.planner.cost import device_bytes, tensor_ops
from fftgen.planner.engines import named_engine
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.launch import size_words
from fftgen.planner.plan import FULL, SIMT, Plan
from fftgen.planner.search import chosen_engine
from fftgen.planner.tables import matrix_bytes
from fftgen.source import Source

if TYPE_CHECKING:
    import jinja2

WMMA_TEMPLATES = {
    "convolve": "inner.j2",
    "rows": "inner.j2",
    "columns": "columns.j2",
    "columns_inverse": "columns_inverse.j2",
    "peaks": "peaks.j2",
}
MMA_TEMPLATES = {
    "peaks": "peaks.j2",
    "columns": "mma_columns.j2",
    "columns_inverse": "mma_columns_inverse.j2",
}
COMMON = ("types", "arguments", "sources", "sinks", "signal")  # device headers that all modules have
FILTER_TITLES = {
    "filter": "The spectrum of a filter, a channel to a block.",
    "filter_columns": "Filters to spectra, columns: from the taps to the workspace.",
    "filter_rows": "Filters to spectra, rows: each scaled by itself, in the order of the convolution.",
    "filter_level": "Filters to spectra, the end: rows by the power of two of their channel.",
    "finish": "From the sum to taps, a channel to a block.",
    "finish_rows": "From the sum to taps, rows: of the sum, to the workspace.",
    "finish_columns": "From the sum to taps, columns: from the workspace.",
    "finish_wrap": "From the sum to taps, the end on a circle: what has come around.",
}

SIMT_TITLES = {
    "convolve": "The whole convolution, a row to a block, or several short ones.",
    "columns": "From the tensor to the workspace: outer stages.",
    "rows": "Rows of the workspace: inner stages, the filter's spectrum, and back.",
    "columns_inverse": "From the workspace to the tensor: outer stages, transposed.",
    "filter": FILTER_TITLES["filter"],
    "filter_columns": FILTER_TITLES["filter_columns"],
    "filter_rows": "Filters to spectra, rows: in the order of the convolution.",
}


def command(plan: Plan, *, own: bool = False) -> str:
    """The command line that renders this plan: with its engine where the planner would take another.

    ``own``: the plan is of a gradient, which has the engine that it has.
    """
    p = plan.problem
    named = named_engine(plan)
    chosen = named if own else chosen_engine(p, plan.target)
    engine = "" if chosen in (named, None) else f" --engine {named}"
    twin = " --twin" if plan.outputs == 2 else ""
    cut = f" --sections {plan.transform}" if plan.sections > 1 else ""
    cut += " --both-ways" if plan.matrix == FULL else ""
    cut += " --spread" if plan.spread else ""
    return f"fftgen render {p.length} --dtype {p.dtype} --{p.mode} --arch {plan.target}{engine}{twin}{cut}"


def gradient_command(gradient: Gradient) -> str:
    """The command line that renders a gradient."""
    return f"{command(gradient.plan, own=True)} --{gradient.label}"


def summary(plan: Plan) -> str:
    """Operations, bytes and shared memory of one transform, for the header of the source."""
    ops = tensor_ops(plan)
    shared = max(k.shared_bytes for k in plan.every_kernel)
    rows = "row" if plan.rows_per_item == 1 else "pair of rows"
    return (
        f"per {rows}: {ops} matrix instructions 16x16x16 ({2 * 16**3 * ops / 1e6:.2f} MFLOP), "
        f"{device_bytes(plan)} bytes of device memory at least; {shared} bytes of shared memory a block"
    )


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2  # what is in the cache is not rendered again (shortcut.py)

    return jinja2.Environment(
        loader=jinja2.PackageLoader("fftgen", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@lru_cache(maxsize=16)
def header(name: str) -> str:
    """The text of a device header, such as "types" or "signal"."""
    path = resources.files("fftgen") / "templates" / "device" / f"{name}.cuh"
    return path.read_text(encoding="utf-8")


def _matrices(plan: Plan) -> list[dict[str, Any]]:
    """The DFT matrices of the inner stages, and where each lies in shared memory (elements)."""
    placed: dict[str, int] = {}
    found = []
    at = 0
    for stage in range(len(plan.device_stages) + 1, plan.order + 1):
        name = plan.table("dft", stage).name
        if name not in placed:
            placed[name] = at
            at += matrix_bytes(plan.stages[stage - 1].radix) // 2
        found.append({"stage": stage, "name": name, "at": placed[name]})
    return found


def _unique(matrices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({m["name"]: m for m in reversed(matrices)}.values())[::-1]


def render(plan: Plan) -> Source:
    """The source of all kernels of a plan: the same bytes for the same plan."""
    template, names = ENGINES[plan.engine]
    text = (
        _environment()
        .get_template(template)
        .render(
            plan=plan,
            subject=plan,
            version=__version__,
            command=command(plan),
            summary=summary(plan),
            ctype=dtype(plan.problem.dtype).ctype,
            **_filter_names(plan),
            **names(plan),
        )
    )
    used = [*COMMON, "filter", "powers", *_headers(plan)]
    headers = {f"fftgen/{name}.cuh": header(name) for name in used}
    entries = [*map(plan.entry, plan.every_kernel), *map(plan.filter_entry, plan.filter.kernels)]
    return Source(f"{plan.name}.cu", text, headers, tuple(entries))


def render_gradient(gradient: Gradient) -> Source:
    """The source of the kernels of a filter's gradient: the same bytes for the same decisions."""
    plan = gradient.plan
    used = [*_headers(plan), "share", "filter", "finish"]
    if plan.engine != SIMT:
        used += ["powers", "gradient"]
    if plan.sections > 1:
        used.append("spread_sums" if plan.spread else "section_sums")
    kind = "spread" if plan.spread else "sections" if gradient.sums else plan.engine
    template, names = GRADIENTS[kind]
    text = (
        _environment()
        .get_template(template)
        .render(
            gradient=gradient,
            plan=plan,
            subject=gradient,
            version=__version__,
            command=gradient_command(gradient),
            summary=f"per row and its cotangent: {gradient.tensor_ops} matrix instructions 16x16x16; "
            f"{gradient.kernel.shared_bytes} bytes of shared memory a block",
            titles=FILTER_TITLES,
            **names(gradient),
        )
    )
    headers = {f"fftgen/{name}.cuh": header(name) for name in (*COMMON, *used)}
    before = map(plan.entry, gradient.before)
    after = map(plan.entry, gradient.after)
    finish = map(plan.filter_entry, plan.filter.kernels)
    sums = (gradient.sums_name,) if gradient.sums else ()
    return Source(f"{gradient.name}.cu", text, headers, (*before, gradient.name, *sums, *after, *finish))


def _headers(plan: Plan) -> tuple[str, ...]:
    """The device headers of a plan beside those that all take."""
    if plan.engine == SIMT:
        return ("simt",)
    if plan.engine == "wmma":
        return ("tables", "wmma", *(("scaled_peaks", "wmma_rows") if plan.scaled else ()))
    used = ["mma", "scaled" if plan.scaled else "bf16", "chain", "butterflies", "column_products", "columns"]
    used.append("scaled_rows" if plan.scaled else "bf16_rows")
    if not plan.block_stage:
        used.append("warp")
    if plan.sections > 1:
        used += ["sections", "whole", "spread"] if plan.spread else ["sections"]
    if plan.device_stages:
        used += ["device", "strips" if plan.strip_peaks else "scaled_peaks"] if plan.scaled else ["device"]
    if plan.whole is not None:
        used += ["cluster_rows", "whole"] if plan.whole.row else ["whole"]
    return tuple(used)


def _filter_names(plan: Plan) -> dict[str, Any]:
    return {
        "spectrum": dtype(plan.spectrum_type).ctype,
        "weights": _first_weights(plan),
        "titles": FILTER_TITLES,
    }


def _weights(radices: Iterable[int], scale: float = 1.0) -> dict[int, list[tuple[str, str]]]:
    """The weights of first stages, by radix, as literals."""
    return {
        radix: [(f"{w.real:.9e}", f"{w.imag:.9e}") for w in scale * filter_tables.first_weights(radix)]
        for radix in radices
    }


def _mma_names(plan: Plan) -> dict[str, Any]:
    body = "mma_block.j2" if plan.block_stage else "mma_warp.j2"
    return {
        "kernel_templates": {"convolve": body, "rows": body, **MMA_TEMPLATES},
        "headers": _headers(plan)[1:],
        "sink": twins.prefix(plan) + ("real_sink" if plan.real_input else "pair_sink"),
        "shared_tables": fragments.copied(plan.tables),
        "ahead": mma_rules.ahead(plan) and not plan.body.brought,
        "whole_ahead": mma_rules.whole_ahead(plan),
        "steady": mma_rules.steady(plan),
        "tight": mma_rules.tight(plan),
        "size_words": size_words(plan),
        "ratio_pitch": _ratio_pitch(plan),
        "packs": spread.packs(plan),
    }


def _simt_names(plan: Plan) -> dict[str, Any]:
    shapes = {kernel.role: simt.shape_of(plan, kernel.role) for kernel in plan.kernels}
    return {
        "simt_titles": SIMT_TITLES,
        "shapes": shapes,
        "first_weights": _first_weights(plan),
        "two": plan.outputs == 2,
    }


def _ratio_pitch(plan: Plan) -> int:
    """Words between what brings strips of two rows to their power and that of the next two; 0: none are."""
    return mma_kernels.ratio_pitch(plan.inner[0], plan.kernel("columns").columns) if plan.strip_peaks else 0


def _wmma_names(plan: Plan) -> dict[str, Any]:
    matrices = _matrices(plan)
    names = {number: plan.table("dft", number).name for number in range(1, plan.order + 1)}
    block = next((i for i, s in enumerate(plan.stages, 1) if s.place == "block"), 0)
    return {
        "dft_tables": list({t.name: t for t in plan.tables if t.kind == "dft"}.values()),
        "kernel_templates": WMMA_TEMPLATES,
        "matrices": _unique(matrices),
        "stage_matrices": matrices,
        "matrix_names": names,
        "block_stage": block,
    }


def _mma_gradient_names(gradient: Gradient) -> dict[str, Any]:
    plan = gradient.plan
    return {
        "ctype": dtype(plan.problem.dtype).ctype,
        "headers": _headers(plan)[1:],
        "ahead": mma_rules.ahead(plan),
        "steady": mma_rules.steady(plan),
        "ratio_pitch": _ratio_pitch(plan),
        "ratio_words": _ratio_pitch(plan) * plan.inner[0].radix // 2,
        "kernel_templates": MMA_TEMPLATES,
        "sink": "maybe_twin_real_sink",
        "tables": gradients.tables(gradient),
        "copied": gradients.copied(plan, gradient.signals),
        "columns_bytes": gradients.columns_bytes(plan),
        "weights": _last_weights(plan),
    }


def _section_gradient_names(gradient: Gradient) -> dict[str, Any]:
    plan = gradient.plan
    return {
        **_mma_names(plan),
        "ctype": dtype(plan.problem.dtype).ctype,
        "weights": _last_weights(plan),
        "packs": spread.gradient_packs(plan),
        "both_held": spread.held(plan),
    }


def _simt_gradient_names(gradient: Gradient) -> dict[str, Any]:
    plan = gradient.plan
    roles = (*(kernel.role for kernel in plan.kernels), "gradient")
    return {
        "simt_titles": SIMT_TITLES,
        "two": True,  # where signals go back at all
        "shapes": {role: simt.shape_of(plan, role) for role in roles},
        "first_weights": _first_weights(plan),
        "weights": _last_weights(plan),
    }


def _first_weights(plan: Plan) -> dict[int, list[tuple[str, str]]]:
    """The weights of signals, or taps, on their way in."""
    return _weights(s.radix for k in plan.filter.kernels for s in k.stages[:1])


def _last_weights(plan: Plan) -> dict[int, list[tuple[str, str]]]:
    """The weights that lags end with, and what undoes the scales of both transforms and 1/N."""
    return _weights((k.stages[0].radix for k in plan.filter.kernels if k.stages), plan.residual)


# Of an engine: the template of its sources, and what that is told.
ENGINES: dict[str, tuple[str, Callable[[Plan], dict[str, Any]]]] = {
    "mma": ("mma.cu.j2", _mma_names),
    "wmma": ("convolution.cu.j2", _wmma_names),
    SIMT: ("simt.cu.j2", _simt_names),
}
# The same of gradients, and of those of rows in sections.
GRADIENTS: dict[str, tuple[str, Callable[[Gradient], dict[str, Any]]]] = {
    "mma": ("gradient.cu.j2", _mma_gradient_names),
    "sections": ("gradient_sections.cu.j2", _section_gradient_names),
    "spread": ("gradient_spread.cu.j2", _section_gradient_names),
    SIMT: ("simt_gradient.cu.j2", _simt_gradient_names),
}
