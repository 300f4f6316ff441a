"""The rooms of the package and the one-way order of imports between them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fftgen

PACKAGE = Path(fftgen.__file__).parent

# A module may import what stands before it, never what stands after. A new module gets its place here.
ORDER = (
    "errors",
    "values",
    "bounded",
    "dtypes",
    "targets",
    "problem",
    "planner",
    "environment",
    "durable",
    "source",
    "templates",
    "render",
    "compile_log",
    "toolkit",
    "nvrtc",
    "sass",
    "hot_path",
    "cache_entry",
    "cache",
    "shortcut",
    "artifact",
    "pipeline",
    "roofline",
    "bundle",
    "simulator",
    "accuracy",
    "gradient_accuracy",
    "launch",
    "runtime",
    "filters",
    "storage",
    "spectra",
    "execute",
    "prepare",
    "gradient",
    "windowed",
    "check",
    "signature",
    "eager",
    "observed",
    "operators",
    "derivatives",
    "autograd",
    "on_demand",
    "loaded",
    "providers",
    "serving",
    "kept",
    "calls",
    "handles",
    "conv",
    "filter_gradient",
    "functional",
    "op",
    "emulate",
    "sampled",
    "nn",
    "verify",
    "figures",
    "gradient_figures",
    "api",
    "portfolio",
    "evidence",
    "bench",
    "doctor",
    "cli",
    "__main__",
)
ABOVE_TORCH = ORDER[ORDER.index("filters") :]

# Who may know a package that is not in the standard library. NumPy is everybody's.
WALLS = {
    "torch": set(ABOVE_TORCH),
    "cuda": {"nvrtc", "runtime"},
    "jinja2": {"render"},
    "sympy": {"planner"},
    "click": {"cli"},
    "matplotlib": {"bench"},
    "scipy": {"bench"},
}
# Rooms that see less of the package than the order would allow.
ISOLATED = {
    "planner": {"errors", "dtypes", "targets", "problem", "planner"},
    "simulator": {"errors", "simulator"},
}


def statements(node: ast.AST, *, loading: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements of a module but those for type checkers only; ``loading``: outside functions."""
    if loading and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for branch in node.orelse:
            yield from statements(branch, loading=loading)
    else:
        for child in ast.iter_child_nodes(node):
            yield from statements(child, loading=loading)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from _from(node)


def _from(node: ast.ImportFrom) -> Iterator[str]:
    if node.level:
        yield "." * node.level + (node.module or "")
    elif node.module == "fftgen":
        yield from (f"fftgen.{alias.name}" for alias in node.names)
    elif node.module:
        yield node.module


def problems(room: str, text: str) -> list[str]:
    """What is wrong with the imports of a module's text that belongs to a room."""
    tree = ast.parse(text)
    wrong = []
    for name in imports(tree):
        top, *rest = name.split(".")
        if not top:
            wrong.append(f"{name}: relative import, write fftgen.…")
        elif top == "fftgen" and rest in ([], ["__version__"]):
            used = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                if node.value.id == "fftgen"
            }
            if used - {"__version__", *(n.split(".")[1] for n in imports(tree) if n.startswith("fftgen."))}:
                wrong.append(f"{name}: only the version may be taken from the package itself")
        elif top == "fftgen":
            wrong += _order(room, rest[0])
        elif top in WALLS:
            if room not in WALLS[top]:
                wrong.append(f"{name}: only {', '.join(sorted(WALLS[top]))} may know {top}")
        elif top != "numpy" and top not in sys.stdlib_module_names:
            wrong.append(f"{name}: a package that WALLS does not list")
    return wrong


def _order(room: str, other: str) -> list[str]:
    if other not in ORDER:
        return [f"fftgen.{other} has no place in ORDER (tests/cpu/test_imports.py)"]
    if other not in ISOLATED.get(room, set(ORDER)):
        return [f"fftgen.{other}: {room}/ sees only {', '.join(sorted(ISOLATED[room]))}"]
    if ORDER.index(other) > ORDER.index(room):
        return [f"fftgen.{other}: stands after {room} in the order of imports"]
    return []


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module of the package but its __init__."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.append((room, path))
    return found


def test_every_module_has_a_place() -> None:
    rooms = {room for room, _ in modules()}
    assert {"errors", "planner", "nvrtc"} <= rooms
    assert rooms <= set(ORDER), "give the new module its place in ORDER"


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_imports_go_one_way(room: str, path: Path) -> None:
    assert problems(room, path.read_text()) == []


def test_modules_do_not_load_each_other_in_circles() -> None:
    """Inside rooms as well: an order exists in which every module finds loaded what it imports."""
    graph = {name: dependencies(path) for name, path in named().items()}
    done: set[str] = set()
    while graph.keys() - done:
        ready = {name for name in graph.keys() - done if graph[name] <= done | {name}}
        assert ready, f"a circle among {sorted(graph.keys() - done)}"
        done |= ready


def named() -> dict[str, Path]:
    names = {}
    for _, path in modules():
        parts = ["fftgen", *path.relative_to(PACKAGE).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def dependencies(path: Path) -> set[str]:
    """The package's modules that a file needs to load: ``from a import c`` means a.c where that is one."""
    known = named()
    found = set()
    for node in statements(ast.parse(path.read_text()), loading=True):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                found.add(longer if longer in known else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & known.keys()


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("planner", "import torch"),
        ("planner", "def f():\n    import torch.nn.functional as F"),
        ("planner", "from fftgen import nvrtc"),
        ("planner", "from fftgen.render import render"),
        ("planner", "from fftgen.simulator.memory import x"),
        ("simulator", "from fftgen.problem import Problem"),
        ("render", "from cuda.bindings import nvrtc"),
        ("render", "from fftgen.nvrtc import compile_ptx"),
        ("nvrtc", "import jinja2"),
        ("launch", "import torch"),
        ("errors", "from fftgen.dtypes import dtype"),
        ("op", "try:\n    import requests\nexcept ImportError: pass"),
        ("op", "from . import conv"),
        ("op", "import fftgen\nfftgen.get_conv(1)"),
        ("op", "from fftgen import get_conv"),
        ("op", "from fftgen.nosuchroom import x"),
        ("pipeline", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch"),
    ],
)
def test_a_breach_is_seen(room: str, text: str) -> None:
    assert len(problems(room, text)) == 1


@pytest.mark.parametrize(
    ("room", "text"),
    [
        (
            "planner",
            "import sympy, numpy, json\nfrom fftgen.planner import tables\nfrom fftgen.errors import X",
        ),
        ("render", "import jinja2\nfrom fftgen import __version__"),
        ("artifact", "def f():\n    import fftgen\n    return fftgen.__version__"),
        ("nvrtc", "def f():\n    from cuda.bindings import nvrtc"),
        ("pipeline", "if TYPE_CHECKING:\n    import torch"),
        ("op", "import torch\nfrom fftgen.conv import registered"),
    ],
)
def test_what_is_allowed_passes(room: str, text: str) -> None:
    assert problems(room, text) == []
