"""Machine instructions of the path that a full, aligned call takes through a kernel.

Counted, not timed: the kernel is compiled once more with the launch's switches fixed (aligned rows of full
length, gates there or not), so that the code of every other path is gone, and the instructions of its loop
over the work are counted in the disassembly. What still branches inside counts as taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fftgen import nvrtc, sass
from fftgen.errors import InternalError
from fftgen.planner import spread
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import LOWER, TILE, Kernel, Plan
from fftgen.planner.section_work import LANES
from fftgen.render import render, render_gradient
from fftgen.source import Source
from fftgen.targets import target as find_target

Loop = tuple[int, int]  # of sass.Code
_ENTRY = "(const Args<T> args) {"
_GRADIENT_ENTRY = "(const GradientArgs<T> {}) {{"
_GRADIENT_NAMES = ("args", "both")
_SIDE_OF_BLOCK = "if (blockIdx.x % 2 == 0) {"
_SIDES = "int side = 0; side < 2;"
_SIDE_OF_STEP = "side = step & 1;"
_FAR_APART = "if (lower) "  # powers of a section and of its result, in kernels of rows in sections


@dataclass(frozen=True)
class HotPath:
    """Instructions that a warp issues for ``elements`` complex elements of its work."""

    instructions: int
    elements: int

    @property
    def per_128(self) -> float:
        """Instructions of a warp for 128 complex elements, one matrix result."""
        return 128 * self.instructions / self.elements

    def per_transform(self, points: int) -> float:
        """Instructions of warps for a transform of so many complex points."""
        return points * self.instructions / self.elements


def specialised(source: Source, length: int, gated: bool) -> Source:
    """The source with every launch aligned, of full length, with or without gates; sections of like sizes."""
    gates = _switched(("args.in_gate", "args.out_gate"), gated)
    head = (
        "(const Args<T> given) {\n    Args<T> args = given;\n"
        f"    args.vector = 1, args.length = args.results = {length};\n    {gates}"
    )
    entries = (_ENTRY, *map(_GRADIENT_ENTRY.format, _GRADIENT_NAMES))
    if not any(entry in source.text for entry in entries):
        raise InternalError(f"{source.name} has no entry point of this fftgen")
    text = source.text.replace(_ENTRY, head)
    for name in _GRADIENT_NAMES:
        text = text.replace(_GRADIENT_ENTRY.format(name), _specialised_gradient(name, length, gated))
    text = text.replace(_FAR_APART, "if (false) ")
    return Source(source.name, text, dict(source.headers), source.entries)


def _specialised_gradient(name: str, length: int, gated: bool) -> str:
    """The head of a gradient's kernel, whose argument has a name."""
    # Gates of results, and results that only gated signals have; a gradient of the input is always wanted.
    fields = ("x.in_gate", "v.in_gate", "x.out_gate", "v.out_gate", "v.twin_gate", "x.y", "v.twin")
    gates = _switched(tuple(f"{name}.{field}" for field in fields), gated)
    gates += _switched((f"{name}.v.y",), True)
    return (
        f"(const GradientArgs<T> given) {{\n    GradientArgs<T> {name} = given;\n"
        f"    {name}.x.vector = {name}.v.vector = 1, {name}.x.length = {name}.v.length = {length};\n"
        f"    {name}.x.results = {name}.v.results = {length};\n    {gates}"
    )


def _switched(gates: tuple[str, ...], there: bool) -> str:
    """Statements that fix whether gates are there. A return where they are not would leave the compiler in
    doubt, and the code of the other path with the counts."""
    return " ".join(
        f"__builtin_assume({g}.data != nullptr);" if there else f"{g}.data = nullptr;" for g in gates
    )


def _compiled(plan: Plan, source: Source, gated: bool) -> dict[str, sass.Code]:
    """By entry: the code of a plan's kernels for aligned calls of full length."""
    length = min(plan.problem.length, plan.points)
    return _listing(specialised(source, length, gated), plan)


def _listing(source: Source, plan: Plan) -> dict[str, sass.Code]:
    return sass.codes(sass.disassemble(nvrtc.compile_cubin(source, plan.target).image))


def hot_paths(plan: Plan, gated: bool, source: Source | None = None) -> dict[str, HotPath]:
    """By role: every kernel of a plan of the mma engine that works on complex elements (none of others).

    ``source``: of a build, by default what the plan renders to now. Raises ToolchainError where NVRTC or
    nvdisasm is missing, InternalError where the source is of another fftgen.
    """
    if plan.engine != "mma":
        return {}
    listing = _compiled(plan, source or render(plan), gated)
    found = {}
    for kernel in plan.kernels:
        if kernel.role == "peaks":
            continue
        turns = _turns(plan, kernel)
        code = listing[plan.entry(kernel)]
        if plan.spread:
            issued = _spread(code, plan, kernel)
        else:
            issued = _body(code, turns, plan.sections, plan.matrix)
        found[kernel.role] = HotPath(issued, plan.sections * _elements(plan, kernel))
    return found


def whole_hot_paths(plan: Plan, gated: bool) -> dict[str, HotPath]:
    """By role: the stages of a long transform, in the kernel that does them all (none where no plan has one).

    What finds the sizes of pairs before is not counted, as in ``hot_paths``.
    """
    kernel = plan.whole
    if kernel is None:
        return {}
    code = _compiled(plan, render(plan), gated)[plan.entry(kernel)]
    there, rows, back = whole_stages(code)
    lines = plan.inner[0].radix
    times = [n for n in (kernel.held, lines - kernel.held) if n]  # in lines of a row: strips in either place
    team = replace(plan.body, warps=kernel.warps // kernel.items)
    strip = _elements(plan, plan.kernel("columns"))

    def strips(loops: list[Loop]) -> HotPath:
        return HotPath(sum(n * _size(x) for n, x in zip(times, loops, strict=True)), lines * strip)

    return {
        "columns": strips(there),
        "rows": HotPath(_issued(code, rows, _turns(plan, team)), _elements(plan, team)),
        "columns_inverse": strips(back),
    }


def whole_stages(code: sass.Code) -> tuple[list[Loop], Loop, list[Loop]]:
    """Loops in the kernel that does all stages: over strips of columns, in one place or two, over rows, and
    over strips on their way back. Raises InternalError where there are not as many there as back."""
    inside = _inside(code, max(code.loops, key=_size))
    outer = [x for x in inside if not any(a <= x[0] and x[1] <= b for a, b in inside if (a, b) != x)]
    stages = sorted(x for x in outer if code.count(x, "HMMA"))
    rows, rest = divmod(len(stages), 2)
    if not rows or not rest:
        raise InternalError(f"{len(stages)} loops with products in the code of one launch")
    return stages[:rows], stages[rows], stages[rows + 1 :]


def gradient_hot_paths(found: Gradient, gated: bool) -> dict[str, HotPath]:
    """The same for a gradient: its own kernel and the columns around it, for a row of each signal.

    A loop over the two signals is taken apart, so that each counts the code that it runs. Without gates the
    first signal does not come back. None of others than the mma engine.
    """
    plan, kernel = found.plan, found.kernel
    if plan.engine != "mma":
        return {}
    if plan.spread:
        return _spread_hot_path(found, gated)
    if found.sums:
        return _section_hot_paths(found, found.sums, gated)
    length = min(plan.problem.length, plan.transform)
    source = specialised(render_gradient(found), length, gated)
    warps = kernel.warps if found.blocks else 1
    elements = plan.row_length * plan.abreast * (1 if found.blocks else kernel.group) // warps
    total = 0
    columns = dict.fromkeys(("columns", "columns_inverse"), 0)
    turns = 1 if found.unrolled else _turns(plan, replace(kernel, role="rows"))
    listing: dict[str, sass.Code] = {}
    for side in (0, 1):
        if not (found.together and listing):  # one loop for both: it is compiled and counted once
            text = source.text
            if not found.together:
                text = text.replace(_SIDES, f"int side = {side}; side < {side + 1};")
                text = text.replace(_SIDE_OF_STEP, f"side = {side};")
            listing = _listing(Source(source.name, text, dict(source.headers), source.entries), plan)
            total += _body(listing[found.name], turns)
        for k in (*found.before, *found.after):
            if k.role == "columns" or (k.role == "columns_inverse" and (gated or side)):
                columns[k.role] += _body(listing[plan.entry(k)], 1)
    paths = {found.label: HotPath(total, elements)}
    return paths | {r: HotPath(n, _elements(plan, plan.kernel(r))) for r, n in columns.items() if n}


def _section_hot_paths(found: Gradient, sums: Kernel, gated: bool) -> dict[str, HotPath]:
    """Of rows in sections: both signals, each compiled by itself, and their sums."""
    plan, kernel = found.plan, found.kernel
    source = specialised(render_gradient(found), plan.points, gated)
    turns, total = _turns(plan, replace(kernel, role="rows")), 0
    listing: dict[str, sass.Code] = {}
    for of_x in ("true", "false"):
        text = source.text.replace(_SIDE_OF_BLOCK, f"if ({of_x}) {{")
        listing = _listing(Source(source.name, text, dict(source.headers), source.entries), plan)
        total += _body(listing[found.name], turns, plan.sections)
    row = plan.points
    tile = plan.sections * TILE**2
    return {
        found.label: HotPath(total, row // kernel.warps),
        "sums": HotPath(_size(min(listing[found.sums_name].loops)), tile),
    }


def _spread_hot_path(found: Gradient, gated: bool) -> dict[str, HotPath]:
    """Of both signals where clusters share sections: in a loop over rows those over sections there and back,
    and between them one over all that these make."""
    plan, kernel = found.plan, found.kernel
    source = specialised(render_gradient(found), plan.points, gated)
    code = _listing(source, plan)[found.name]
    row = max(_inside(code, max(code.loops, key=_size)), key=_size)
    issued = _shared(code, row, plan, kernel, spread.gradient_packs(plan), 2)
    return {found.label: HotPath(issued, plan.points // kernel.warps)}


def _elements(plan: Plan, kernel: Kernel) -> int:
    """Complex elements that one warp does in one turn of a kernel's loop over its work."""
    if kernel.role in ("convolve", "rows"):
        return plan.row_length * plan.abreast * kernel.items // kernel.warps
    return plan.stages[0].radix * 8 * kernel.columns


def _turns(plan: Plan, kernel: Kernel) -> int:
    """How often the loop over the rows of a block runs inside that."""
    if kernel.role not in ("convolve", "rows") or not plan.block_stage:
        return 1
    return -(-plan.inner[0].lines // (kernel.warps * kernel.group))


def _body(code: sass.Code, turns: int, sections: int = 1, matrix: str = LOWER) -> int:
    """Instructions of the longest loop, a loop inside it that is no copy taken ``turns`` times.

    Of a row in ``sections`` that is the loop over these, which each keep their transform and take products
    with all earlier ones, as it is counted.
    """
    if not code.loops:
        raise InternalError("no loop over the work in the disassembly")
    loop = max(code.loops, key=_size)
    if sections == 1:
        return _issued(code, loop, turns)
    if matrix != LOWER:
        return _between(code, loop, turns, sections)
    section = max(_inside(code, loop), key=_size)
    return _size(loop) - _size(section) + sections * _issued(code, section, turns)


def _between(code: sass.Code, loop: Loop, turns: int, sections: int) -> int:
    """The same where one section stands between a loop over the others on their way there, and one back.

    Of two sections the compiler takes these loops apart. Rows of the one take all products, in a loop over
    what they come to.
    """
    parts = [x for x in _children(code, loop) if code.count(x, "HMMA")]
    others = [x for x in parts if turns == 1 or any(code.count(y, "HMMA") for y in _children(code, x))]
    rows = [x for x in parts if x not in others]
    found = _size(loop) - sum(map(_size, parts))
    found += (sections - 1) * sum(_issued(code, x, turns) for x in others)
    return found + turns * sum(_size(x) + (sections - 1) * sum(map(_size, _children(code, x))) for x in rows)


def _spread(code: sass.Code, plan: Plan, kernel: Kernel) -> int:
    """The same where the blocks of a cluster share the sections of a row: of all of them, for a warp of each.

    Loops over sections on their way there and back, and between them one over products.
    """
    return _shared(code, max(code.loops, key=_size), plan, kernel, spread.packs(plan), 1)


def _shared(code: sass.Code, loop: Loop, plan: Plan, kernel: Kernel, packs: int, signals: int) -> int:
    """The same of a loop over rows of so many signals."""
    turns = _turns(plan, replace(kernel, role="convolve"))
    parts = [x for x in _children(code, loop) if code.count(x, "HMMA")]
    others = [x for x in _children(code, loop) if x not in parts]
    products = max(others, key=lambda x: code.count(x, "HFMA2"))
    share = plan.transform // (2 * LANES * packs * kernel.warps)
    blocks = spread.many(plan, find_target(plan.target), signals).size
    around = _size(loop) - sum(map(_size, parts)) - _size(products)
    found = plan.sections * sum(_issued(code, x, turns) for x in parts)
    return found + share * _size(products) + blocks * around


def _children(code: sass.Code, loop: Loop) -> list[Loop]:
    """The loops right inside of one."""
    inside = _inside(code, loop)
    return [x for x in inside if not any(y[0] <= x[0] and x[1] <= y[1] and y != x for y in inside)]


def _issued(code: sass.Code, loop: Loop, turns: int) -> int:
    """Those of a loop, the longest one inside it counted so often."""
    return _size(loop) + (turns - 1) * max((_size(x) for x in _inside(code, loop)), default=0)


def _inside(code: sass.Code, loop: Loop) -> list[Loop]:
    return [x for x in code.loops if loop[0] < x[0] and x[1] < loop[1]]


def _size(loop: Loop) -> int:
    return loop[1] - loop[0]
