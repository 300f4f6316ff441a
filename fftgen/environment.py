"""The environment variables: one table, read when they are needed and nowhere else."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fftgen.errors import InputError


@dataclass(frozen=True)
class Variable:
    """A row of the table: ``default`` says in words what holds when the variable is unset (or empty, unless
    its meaning tells otherwise)."""

    name: str
    meaning: str
    default: str

    @property
    def value(self) -> str | None:
        """What is set now, which may be empty, or None."""
        return os.environ.get(self.name)


CACHE_DIR = Variable(
    "FFTGEN_CACHE_DIR",
    "directory of the kernel cache; empty is an error",
    "$XDG_CACHE_HOME/fftgen, else ~/.cache/fftgen",
)
NO_JIT = Variable(
    "FFTGEN_NO_JIT",
    "1: never compile; a kernel that is neither in an artifact nor in the cache is an error",
    "0",
)
DUMP = Variable(
    "FFTGEN_DUMP",
    "directory to which every compile writes its source and headers, PTX, cubin and log",
    "nothing is written",
)
VARIABLES = (CACHE_DIR, NO_JIT, DUMP)

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


def cache_directory() -> Path | None:
    """Where the kernel cache belongs, absolute; None when neither variable nor home directory says.

    The directory need not exist. A relative or empty XDG_CACHE_HOME is ignored, as the XDG base directory
    specification demands. An empty FFTGEN_CACHE_DIR raises InputError: it is what a script makes of a name
    that it forgot to set, and ``fftgen cache clear`` would then empty a directory that nobody named.
    """
    if CACHE_DIR.value == "":
        raise InputError(f"{CACHE_DIR.name} is set, but empty: name a directory, or unset it for the default")
    if CACHE_DIR.value is not None:
        return _absolute(CACHE_DIR.value)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "fftgen"
    try:
        return Path.home() / ".cache" / "fftgen"
    except RuntimeError:  # no HOME and no entry in the user database: some containers
        return None


def no_jit() -> bool:
    """Whether compiling at run time is forbidden. Raises InputError for neither yes nor no."""
    value = (NO_JIT.value or "0").strip().lower()
    if value not in _YES | _NO:
        raise InputError(f"{NO_JIT.name}={value!r} is neither yes nor no: set it to 1 or 0")
    return value in _YES


def dump_directory() -> Path | None:
    """Where compiles leave their files, absolute; None for nowhere."""
    return _absolute(DUMP.value) if DUMP.value else None


def of_child(**variables: str) -> dict[str, str]:
    """The environment of a program to be started: this process's, with variables added."""
    return {**os.environ, **variables}


def of_python(**variables: str) -> dict[str, str]:
    """The same of another Python that imports this package from any directory.

    A package that is not installed was found by the working directory or by a relative path, which the other
    one may not share.
    """
    root = Path(__file__).resolve().parents[1]
    if str(root) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return of_child(**variables)
    paths = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return of_child(PYTHONPATH=os.pathsep.join(dict.fromkeys(paths)), **variables)


def cuda_homes() -> Iterator[tuple[str, Path]]:
    """Toolkit roots named by CUDA's own variables: pairs of variable and path."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        value = os.environ.get(name)
        if value:
            yield name, Path(value)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
