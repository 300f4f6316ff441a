"""Reading the compiler's log: resources per kernel, and errors beside the lines they are about."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fftgen.source import Source

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_ERROR = re.compile(r"^(?P<file>[^\n(]+)\((?P<line>\d+)\): (?P<what>(?:catastrophic )?error\b[^\n]*)", re.M)
_PTX_ERROR = re.compile(r"^ptxas .*ptx input, line (?P<line>\d+); (?P<what>error\b[^\n]*)", re.M)
_NO_FILE = re.compile(r"(?:cannot|could not) open source file \"([^\"]+)\"")
_CONTEXT = 2
_MOST = 5


@dataclass(frozen=True)
class Resources:
    """What one kernel takes. Registers are per thread; spills and stack are bytes per thread.

    ``static_shared_bytes`` is what the kernel declares; from sm_80 on the system
    keeps another 1024 bytes of shared memory per block.
    Spills and stack of device functions that were not inlined are counted to every kernel.
    """

    registers: int
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    stack_bytes: int = 0
    static_shared_bytes: int = 0

    @property
    def spills(self) -> bool:
        """Whether anything goes through local memory for want of registers."""
        return self.spill_store_bytes > 0 or self.spill_load_bytes > 0


def parse_resources(log: str) -> dict[str, Resources]:
    """Kernel name to resources, from what ``--ptxas-options=-v`` leaves in the log."""
    found: dict[str, Resources] = {}
    outlined = Resources(0)
    entry = function = ""
    for line in log.splitlines():
        if m := _ENTRY.search(line):
            entry = function = m[1]
            found[entry] = Resources(0)
        elif m := _FUNCTION.search(line):
            function = m[1]
        elif m := _STACK.search(line):
            stack, stores, loads = (int(x) for x in m.groups())
            if function in found:
                found[function] = replace(
                    found[function], stack_bytes=stack, spill_store_bytes=stores, spill_load_bytes=loads
                )
            else:
                outlined = replace(
                    outlined,
                    stack_bytes=outlined.stack_bytes + stack,
                    spill_store_bytes=outlined.spill_store_bytes + stores,
                    spill_load_bytes=outlined.spill_load_bytes + loads,
                )
        elif (m := _USED.search(line)) and function == entry and entry in found:
            shared = _SHARED.search(line)
            found[entry] = replace(
                found[entry], registers=int(m[1]), static_shared_bytes=int(shared[1]) if shared else 0
            )
    return {
        name: replace(
            r,
            stack_bytes=r.stack_bytes + outlined.stack_bytes,
            spill_store_bytes=r.spill_store_bytes + outlined.spill_store_bytes,
            spill_load_bytes=r.spill_load_bytes + outlined.spill_load_bytes,
        )
        for name, r in found.items()
    }


def missing_file(log: str) -> str | None:
    """The include file that the compiler did not find, or None."""
    found = _NO_FILE.search(log)
    return found[1] if found else None


def excerpts(source: Source, log: str) -> str:
    """The generated lines that the first errors are about, with their neighbours and a caret.

    Empty when the log names no line of the source or its headers.
    """
    parts: list[str] = []
    lines = log.splitlines()
    for m in _ERROR.finditer(log):
        text = source.file(m["file"])
        if text is None:
            continue
        if len(parts) == _MOST:
            parts.append("...")
            break
        at = log.count("\n", 0, m.start())
        parts.append(
            f"{m['file']}:{m['line']}: {m['what']}\n" + _excerpt(text, int(m["line"]), lines[at + 1 :])
        )
    return "\n".join(parts)


def ptx_excerpts(ptx: str, log: str) -> str:
    """The PTX lines that the assembler's first errors are about: where inline PTX went wrong."""
    found = list(_PTX_ERROR.finditer(log))
    parts = [f"PTX line {m['line']}: {m['what']}\n{_excerpt(ptx, int(m['line']), ())}" for m in found[:_MOST]]
    return "\n".join(parts + ["..."] * (len(found) > _MOST))


def _excerpt(text: str, number: int, after: Sequence[str]) -> str:
    code = text.splitlines()
    if not 1 <= number <= len(code):
        return ""
    first, last = max(1, number - _CONTEXT), min(len(code), number + _CONTEXT)
    width = len(str(last))
    out: list[str] = []
    for i in range(first, last + 1):
        out.append(f"{'>' if i == number else ' '} {i:{width}} | {code[i - 1]}".rstrip())
        if i == number:
            column = _caret(code[i - 1], after)
            if column is not None:
                # Tabs of the line are kept under it, so that the caret stands right at any tab width.
                pad = "".join("\t" if c == "\t" else " " for c in code[i - 1][:column])
                out.append(f"  {'':{width}} | {pad}^")
    return "\n".join(out) + "\n"


def _caret(line: str, after: Sequence[str]) -> int | None:
    """The column that the log points at: it repeats the line two columns to the right, a caret below.

    Remarks may stand between the message and the line.
    """
    for shown, below in itertools.pairwise(after[:9]):
        if _ERROR.match(shown):
            return None
        if below.strip() == "^" and shown[2:].rstrip() == line.rstrip():
            return min(below.index("^") - 2, len(line))
    return None
