"""What the simulator stops for. One class per kind of fault, all telling where they happened."""

from __future__ import annotations

from fftgen.errors import FFTGenError

Dim3 = tuple[int, int, int]


class SimulationError(FFTGenError):
    """Base of every fault found while parsing or running PTX.

    Attributes (None where unknown): ``instruction`` PTX text; ``ptx_line`` 1-based line of the PTX text;
    ``source_line`` 1-based line of the generated CUDA source; ``block`` and ``thread`` coordinates (x, y, z);
    ``address`` (device address, or byte offset in shared or local memory); ``buffer`` name of the buffer, or
    "shared", "local", "param"; ``other`` the second access of a race, in words.
    """

    def __init__(
        self,
        message: str,
        *,
        instruction: str | None = None,
        ptx_line: int | None = None,
        source_line: int | None = None,
        block: Dim3 | None = None,
        thread: Dim3 | None = None,
        address: int | None = None,
        buffer: str | None = None,
        other: str | None = None,
        location: str | None = None,
    ) -> None:
        self.instruction = instruction
        self.ptx_line = ptx_line
        self.source_line = source_line
        self.block = block
        self.thread = thread
        self.address = address
        self.buffer = buffer
        self.other = other
        self.location = location
        self.message = message
        lines = [message]
        if instruction is not None:
            where = f"PTX line {ptx_line}" if ptx_line is not None else "PTX"
            lines.append(f"at {where}: {instruction}")
        if location is not None:
            lines.append(f"source: {location}")
        if block is not None:
            lines.append(f"block {block}" + (f", thread {thread}" if thread is not None else ""))
        if address is not None:
            lines.append(f"address {address:#x}" + (f" in {buffer}" if buffer is not None else ""))
        if other is not None:
            lines.append(f"other: {other}")
        super().__init__("\n  ".join(lines))


class ParseError(SimulationError):
    """The text is not PTX that the simulator understands."""


class LaunchError(SimulationError):
    """The launch does not fit the kernel: parameters, block size, shared memory, unknown entry."""


class OutOfBounds(SimulationError):
    """An access outside every bound buffer, or across the end of one."""


class Misaligned(SimulationError):
    """An address that is not a multiple of what the instruction demands."""


class UninitializedRead(SimulationError):
    """A register, a shared byte or a byte of a poisoned buffer was read before anything wrote it."""


class SharedRace(SimulationError):
    """Two unordered accesses to one byte of shared memory, one of them a write."""


class GlobalRace(SimulationError):
    """Two unordered accesses to one byte of device memory, one of them a write."""


class DivergedCollective(SimulationError):
    """A collective (``.sync``) instruction was not executed by all the threads it names."""


class Deadlock(SimulationError):
    """No thread can go on: a barrier waits for threads that never come."""


class UnknownInstruction(SimulationError):
    """An instruction, or a modifier of one, that the simulator does not implement."""


class ReadOnlyWrite(SimulationError):
    """A write to a buffer bound with ``writable=False``, to constant memory or to parameters."""


class InvalidPolicy(SimulationError):
    """A cache hint by a value that no createpolicy made."""


class Trap(SimulationError):
    """The kernel executed ``trap`` or ``brkpt``."""
