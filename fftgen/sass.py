"""Machine code as text: disassembly with nvdisasm, and instructions counted by opcode.

For development, ``fftgen inspect --sass`` and instruction budgets in tests; nothing needs it at run time.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fftgen import toolkit
from fftgen.errors import InputError, ToolchainError

_SECTION = re.compile(r"^//-+\s+(\.\S+)\s+-+\s*$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"^(\.L\w+):")
_TARGET = re.compile(r"\((\.L\w+)\)")
_SECONDS = 120


def disassemble(cubin: bytes) -> str:
    """The listing of a cubin, a section per kernel.

    Raises ToolchainError when nvdisasm is missing, InputError when it cannot read the bytes.
    """
    tool = toolkit.find_tool("nvdisasm")
    if tool is None:
        raise ToolchainError(
            "nvdisasm was found neither in wheels, nor on the PATH, nor in a CUDA toolkit: "
            "pip install nvidia-cuda-nvdisasm"
        )
    with tempfile.TemporaryDirectory(prefix="fftgen-sass-") as place:
        path = Path(place) / "kernel.cubin"
        path.write_bytes(cubin)
        try:
            done = subprocess.run(
                [str(tool), "--print-code", str(path)],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolchainError(f"{tool} did not run to its end: {error}") from error
    if done.returncode != 0:
        raise InputError(
            f"nvdisasm cannot read these {len(cubin)} bytes as a cubin (a newer nvdisasm may be needed): "
            f"{(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


class Code(NamedTuple):
    """A kernel's opcodes in their order, with modifiers, and its loops: where their first instruction is, and
    the one behind their last."""

    opcodes: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]

    def count(self, loop: tuple[int, int], *names: str) -> int:
        """Instructions of a loop whose opcodes begin with one of these names."""
        return sum(opcode.startswith(names) for opcode in self.opcodes[slice(*loop)])


def codes(sass: str) -> dict[str, Code]:
    """Kernel name to its code."""
    found, lines = {}, sass.splitlines()
    starts = [i for i, line in enumerate(lines) if _SECTION.match(line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        section = _SECTION.match(lines[start])
        if section and section[1].startswith(".text."):
            found[section[1][6:]] = _code(lines[start:end])
    return found


def _code(lines: list[str]) -> Code:
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    loops = []
    for line in lines:
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(opcodes)
        elif instruction := _INSTRUCTION.match(line):
            opcodes.append(instruction[1])
            target = _TARGET.search(line) if opcodes[-1].startswith("BRA") else None
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(opcodes)))
    return Code(tuple(opcodes), tuple(loops))


def instruction_mix(sass: str, *, modifiers: bool = False) -> dict[str, Counter[str]]:
    """Kernel name to number of instructions by opcode, counted as they stand (a loop body counts once).

    With ``modifiers`` opcodes are kept whole ("HMMA.16816.F32.BF16"), else cut to "HMMA".
    The padding after the last branch (BRA to itself and NOPs) is counted as it stands.
    """
    found: dict[str, Counter[str]] = {}
    current: Counter[str] | None = None
    for line in sass.splitlines():
        if section := _SECTION.match(line):
            name = section[1]
            current = found.setdefault(name[6:], Counter()) if name.startswith(".text.") else None
        elif current is not None and (m := _INSTRUCTION.match(line)):
            current[m[1] if modifiers else m[1].split(".")[0]] += 1
    return found
