"""The compiler: source to PTX, cubin and log through NVRTC. Needs neither a GPU nor a driver.

Facts that this file rests on (NVRTC 12.4, 12.9, 13.0 and 13.5):

- Compiling for a real architecture (``sm_90``) leaves the PTX from which the cubin was assembled; it is byte
  for byte the PTX of the virtual architecture (``compute_90``). So one compile yields the cubin and exactly
  the text that the simulator has to run.
- Line information leaves the instructions as they are, in PTX and in machine code, but writes the current
  directory and the include directories into both. Cubins to be kept are therefore compiled without it.
- ``nvrtcCompileProgram`` releases the interpreter lock and programs are independent: two threads on two cores
  take 0.55 of the time of one, as much as two processes would gain.
- From 12.9 on NVRTC keeps what it compiled in the driver's cache, where there is a driver. What comes out of
  it lacks the assembler's report of registers and spills, so that cache is left out: ours does the same.
- 12.4 leaves the thread that compiled in the locale "C": text files that Python opens then are ASCII to it.
- A process has one NVRTC. Where a CUDA build of PyTorch is imported before the first compile, it is PyTorch's
  (cuda-bindings takes symbols that are there), whose code a driver that runs PyTorch is sure to load.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fftgen import environment, toolkit
from fftgen.compile_log import Resources, excerpts, missing_file, parse_resources, ptx_excerpts
from fftgen.errors import CompileError, InputError, ToolchainError
from fftgen.source import Source

__all__ = [
    "Cubin",
    "Resources",
    "Source",
    "build",
    "compile_cubin",
    "compile_jobs",
    "compile_many",
    "compile_ptx",
    "headers",
    "library",
    "options",
    "supported_architectures",
    "version",
]

_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)([af]?)")
_LIBRARY = re.compile(r"libnvrtc(-[0-9a-f]+)?\.so")
_BUNDLES_HEADERS = (13, 3)
_KEEPS_RESULTS = (12, 9)


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture.

    ``ptx`` is the text it was assembled from; ``resources`` maps kernel names to what they take.
    """

    arch: str
    image: bytes
    ptx: str
    log: str
    resources: Mapping[str, Resources]


def version() -> tuple[int, int]:
    """(major, minor) of the NVRTC library. Raises ToolchainError when it cannot be loaded."""
    api = _bindings()
    try:
        result = api.nvrtcVersion()
    except Exception as error:
        # The bindings load the library at the first call; each release of them fails in its own way.
        raise ToolchainError(
            f"the NVRTC library cannot be loaded ({_first_line(error)}): "
            f"{toolkit.extra_for(_binding_major())}, or install a CUDA toolkit and put its library "
            "directory on LD_LIBRARY_PATH"
        ) from error
    _check(result[0], "nvrtcVersion")
    return int(result[1]), int(result[2])


def library() -> Path | None:
    """The file of the NVRTC library that this process has loaded; None where that cannot be told."""
    version()
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            found = {line[line.index("/") :].rstrip("\n") for line in maps if "libnvrtc" in line}
    except (OSError, ValueError):
        return None
    files = [Path(name) for name in found if _LIBRARY.match(Path(name).name)]
    return files[0] if len(files) == 1 and files[0].is_file() else None


@functools.cache
def build() -> str:
    """The full release of the compiler, such as "13.5.37" (asked of the compiler itself, 20 ms once)."""
    text = compile_ptx(Source("version.cu", ""), f"compute_{_numbers()[0]}", line_info=False)
    found = re.search(r"Cuda compilation tools, release [\d.]+, V([\d.]+)", text)
    return found[1] if found else ".".join(map(str, version()))


def supported_architectures() -> tuple[str, ...]:
    """The targets of this NVRTC, such as ("sm_75", "sm_80", ...), without the architecture-specific ones.

    ``sm_90a`` and, from 100 on, the suffixes ``a`` and ``f`` are accepted beside them.
    """
    return tuple(f"sm_{n}" for n in _numbers())


def headers() -> toolkit.Headers:
    """The CUDA headers that go with this NVRTC.

    Those of wheels or a toolkit, else those that NVRTC itself carries (13.3 and later).
    Raises ToolchainError when there are none at all. A set without ``crt/mma.h`` is returned as it is:
    kernels that do not include ``mma.h`` compile with it.
    """
    return _headers(version(), tuple(environment.cuda_homes()))


def options(target: str, *, line_info: bool = False, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """The ordered compiler options for "sm_XX" or "compute_XX": all that reach the code, no paths."""
    fixed = [f"--gpu-architecture={target}", "-std=c++17", "-default-device"]
    if line_info:
        fixed.append("--generate-line-info")
    if target.startswith("sm_"):
        fixed.append("--ptxas-options=-v")
    return (*fixed, *extra)


def compile_ptx(
    source: Source, virtual: str = "compute_80", *, line_info: bool = True, extra: Iterable[str] = ()
) -> str:
    """PTX text for a virtual architecture.

    With ``line_info`` it carries ``.loc`` and ``.file`` directives that name ``source.name`` and the headers
    as they are included, without directories; the instructions are the same with and without.
    Raises InputError (target), CompileError (source), ToolchainError (NVRTC or headers missing).
    """
    _check_target(virtual, "compute")
    output = _compile(source, virtual, options(virtual, line_info=line_info, extra=extra))
    text = _without_paths(output.ptx)
    absent = [e for e in source.entries if not re.search(rf"\.entry\s+{re.escape(e)}\b", text)]
    if absent:
        raise _no_entry(source, absent, re.findall(r"\.entry\s+([\w$]+)", text), output.log)
    return text


def compile_cubin(
    source: Source, arch: str = "sm_90", *, line_info: bool = False, extra: Iterable[str] = ()
) -> Cubin:
    """Machine code for one architecture, with its PTX, log and resources per kernel.

    The same source gives the same bytes, wherever and whenever it is compiled (``line_info`` breaks that).
    Raises InputError (target), CompileError (source), ToolchainError (NVRTC or headers missing).
    """
    _check_target(arch, "sm")
    output = _compile(source, arch, options(arch, line_info=line_info, extra=extra))
    resources = parse_resources(output.log)
    absent = [e for e in source.entries if e not in resources]
    if absent:
        raise _no_entry(source, absent, list(resources), output.log)
    return Cubin(arch, output.cubin, _without_paths(output.ptx), output.log, MappingProxyType(resources))


def compile_many(source: Source, archs: Sequence[str], workers: int | None = None) -> dict[str, Cubin]:
    """One source for several architectures, in parallel threads."""
    return dict(zip(archs, compile_jobs([(source, arch) for arch in archs], workers), strict=True))


def compile_jobs(
    jobs: Sequence[tuple[Source, str]],
    workers: int | None = None,
    done: Callable[[Cubin], None] | None = None,
) -> list[Cubin]:
    """Cubins for (source, architecture) pairs in their order; ``done`` is called with each, in that order.

    ``workers`` defaults to the cores this process may use. The first error is raised, after the compiles
    under way; those not begun are dropped.
    """
    for _, arch in jobs:
        _check_target(arch, "sm")
    count = max(1, min(workers or _cores(), len(jobs)))
    with ThreadPoolExecutor(count, thread_name_prefix="fftgen-nvrtc") as pool:
        futures = [pool.submit(compile_cubin, source, arch) for source, arch in jobs]
        try:
            out: list[Cubin] = []
            for future in futures:
                out.append(future.result())
                if done is not None:
                    done(out[-1])
            return out
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Output:
    ptx: str
    cubin: bytes
    log: str


def _compile(source: Source, target: str, flags: tuple[str, ...]) -> _Output:
    include = headers()
    code, output = _run(source, (*flags, *(f"--include-path={d}" for d in include.directories)))
    dump = environment.dump_directory()
    if dump is not None:
        _dump(dump, source, target, output)
    if code == "NVRTC_SUCCESS":
        return output
    if code not in ("NVRTC_ERROR_COMPILATION", "NVRTC_ERROR_INVALID_OPTION"):
        raise ToolchainError(
            f"NVRTC {_dotted(version())} failed on {source.name} with {code}: "
            f"{output.log.strip() or 'no log'}"
        )
    if "--gpu-architecture" in output.log or "--nv_arch" in output.log:  # a suffix that the number lacks
        raise _unknown_target(target)
    lost = missing_file(output.log)
    if lost in toolkit.PROBES or (lost or "").startswith(("crt/", "cuda/", "cooperative_groups")):
        release = include.version or version()
        raise ToolchainError(
            f"{source.name} includes {lost}, which the headers at hand lack ({include.origin}): pip install "
            f"'{toolkit.package_for(str(lost), release)}', or set CUDA_HOME to a CUDA {release[0]} toolkit"
        )
    raise CompileError(_story(source, target, flags, output), output.log.strip())


def _story(source: Source, target: str, flags: tuple[str, ...], output: _Output) -> str:
    """What the compiler objects to, beside the generated lines; for assembler errors beside the PTX lines."""
    head = f"NVRTC {_dotted(version())} refused {source.name} for {target}"
    shown = excerpts(source, output.log)
    if not shown and "ptx input, line" in output.log and target.startswith("sm_"):
        virtual = target.replace("sm_", "compute_")
        again = [f"--gpu-architecture={virtual}", *flags[1:]]
        again = [f for f in again if not f.startswith("--ptxas-options")]
        code, ptx = _run(source, (*again, *(f"--include-path={d}" for d in headers().directories)))
        if code == "NVRTC_SUCCESS":
            shown = ptx_excerpts(ptx.ptx, output.log)
    return f"{head}\n{shown}".rstrip()


def _run(source: Source, flags: tuple[str, ...]) -> tuple[str, _Output]:
    """One NVRTC program from creation to destruction: the result's name and what came out."""
    if version() >= _KEEPS_RESULTS:
        flags = (*flags, "--no-cache")
    api = _bindings()
    result, program = api.nvrtcCreateProgram(
        source.text.encode(),
        source.name.encode(),
        len(source.headers),
        [text.encode() for text in source.headers.values()],
        [name.encode() for name in source.headers],
    )
    _check(result, "nvrtcCreateProgram")
    try:
        encoded = [os.fsencode(flag) for flag in flags]
        with _own_locale():
            (result,) = api.nvrtcCompileProgram(program, len(encoded), encoded)
        name = str(result.name)
        log = _text(_fetch(api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog, program))
        if name != "NVRTC_SUCCESS":
            return name, _Output("", b"", log)
        ptx = _text(_fetch(api.nvrtcGetPTXSize, api.nvrtcGetPTX, program))
        real = any(f.startswith("--gpu-architecture=sm_") for f in flags)
        cubin = _fetch(api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN, program) if real else b""
        return name, _Output(ptx, cubin, log)
    finally:
        api.nvrtcDestroyProgram(program)


@contextlib.contextmanager
def _own_locale() -> Iterator[None]:
    """The thread has its locale back afterwards (POSIX, uselocale)."""
    use = _uselocale()
    before = use(None) if use else None
    try:
        yield
    finally:
        if use:
            use(before)


@functools.cache
def _uselocale() -> Callable[[int | None], int | None] | None:
    if os.name != "posix":
        return None
    found: Any = getattr(ctypes.CDLL(None), "uselocale", None)
    if found is not None:
        found.argtypes, found.restype = [ctypes.c_void_p], ctypes.c_void_p
    use: Callable[[int | None], int | None] | None = found
    return use


def _fetch(size: Callable[[Any], Any], get: Callable[[Any, bytearray], Any], program: Any) -> bytes:
    result, count = size(program)
    _check(result, "asking for a size")
    # NVRTC writes into the buffer in place: never into bytes (b" " * 1 is shared by the whole interpreter).
    buffer = bytearray(count)
    if count:
        _check(get(program, buffer)[0], "fetching a result")
    return bytes(buffer)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _check(result: Any, what: str) -> None:
    if result.value != 0:
        raise ToolchainError(f"NVRTC: {what} failed with {result.name}")


@functools.cache
def _bindings() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise ToolchainError(
            f"the package cuda-bindings cannot be imported ({_first_line(error)}): {toolkit.extra_for(13)}"
        ) from error
    return nvrtc


def _binding_major() -> int:
    try:
        import cuda.bindings

        return int(str(cuda.bindings.__version__).split(".")[0])
    except (ImportError, AttributeError, ValueError):
        return 13


@functools.cache
def _numbers() -> tuple[int, ...]:
    version()
    result, numbers = _bindings().nvrtcGetSupportedArchs()
    _check(result, "nvrtcGetSupportedArchs")
    return tuple(int(n) for n in numbers)


def _check_target(target: str, kind: str) -> None:
    found = _ARCHITECTURE.fullmatch(target)
    if found is None or found[1] != kind:
        raise InputError(f"target {target!r} is not of the form {kind}_90: choose {_choices(kind)}")
    if int(found[2]) not in _numbers():
        raise _unknown_target(target)


def _unknown_target(target: str) -> InputError:
    kind = target.split("_")[0]
    return InputError(
        f"target {target} is unknown to NVRTC {_dotted(version())}, which compiles for {_choices(kind)}: "
        "choose one of them or install another NVRTC"
    )


def _choices(kind: str) -> str:
    return ", ".join(f"{kind}_{n}" for n in _numbers())


@functools.cache
def _headers(release: tuple[int, int], homes: tuple[tuple[str, Path], ...]) -> toolkit.Headers:
    """``homes`` is only there to look again when CUDA_HOME changes."""
    found = toolkit.find_headers(release[0])
    if found is not None and not found.missing:
        return found
    bundled = _bundled_headers(release)
    if bundled is not None:
        return bundled
    if found is not None:
        return found
    raise ToolchainError(
        f"no CUDA {release[0]} headers (cuda_fp16.h) were found in wheels, CUDA_HOME, CUDA_PATH, "
        f"CONDA_PREFIX or /usr/local/cuda: {toolkit.extra_for(release[0])}, "
        f"or set CUDA_HOME to a CUDA {release[0]} toolkit"
    )


def _bundled_headers(release: tuple[int, int]) -> toolkit.Headers | None:
    """Unpack the headers that the library carries (21 MB) into the cache directory, once."""
    root = environment.cache_directory()
    if release < _BUNDLES_HEADERS or root is None or not hasattr(_bindings(), "nvrtcInstallBundledHeaders"):
        return None
    place = root / f"headers-{_dotted(release)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    skip_if_there = 0
    if _bindings().nvrtcInstallBundledHeaders(os.fsencode(place), skip_if_there)[0].value != 0:
        return None
    return toolkit.examine(f"carried by NVRTC, in {place}", (place, place / "cccl"))


def _without_paths(ptx: str) -> str:
    """``.file`` directives with the name as it was included: no working directory, no include directory."""
    roots = [os.getcwd(), *(str(d) for d in headers().directories)]

    def short(m: re.Match[str]) -> str:
        name = m[2]
        for root in sorted(roots, key=len, reverse=True):
            name = name.removeprefix(root.rstrip("/") + "/")
        return f'{m[1]}"{name}"'

    return re.sub(r'^(\s*\.file\s+\d+\s+)"([^"]*)"', short, ptx, flags=re.M)


def _no_entry(source: Source, absent: list[str], present: list[str], log: str) -> CompileError:
    return CompileError(
        f"{source.name} compiled, but kernel {', '.join(absent)} is not in it "
        f"(found: {', '.join(present) or 'none'}): "
        'it must be declared extern "C" __global__',
        log.strip(),
    )


def _dump(directory: Path, source: Source, target: str, output: _Output) -> None:
    """Leave everything of one compile in ``directory``, a failed one, too."""
    stem = f"{Path(source.name).stem}.{target}"
    files: dict[str, bytes] = {source.name: source.text.encode(), f"{stem}.log": output.log.encode()}
    files.update({name: text.encode() for name, text in source.headers.items()})
    if output.ptx:
        files[f"{stem}.ptx"] = output.ptx.encode()
    if output.cubin:
        files[f"{stem}.cubin"] = output.cubin
    try:
        for name, content in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(content)
    except OSError as error:
        raise InputError(
            f"{environment.DUMP.name}={directory} cannot be written ({error}): "
            "name a writable directory or unset it"
        ) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _dotted(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
