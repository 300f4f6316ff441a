"""A functional simulator of PTX on the CPU, stricter than a GPU and counting what a kernel does.

``parse`` reads PTX, ``DeviceMemory`` holds the buffers, ``simulate`` runs a kernel and returns a Report, or
raises the SimulationError that names the first fault.

The way of a launch: lexer, parser, declarations and body make a Module of frozen syntax; dataflow finds
the registers whose initialisation is in doubt; decode and the instruction families (integer, bits, moves,
floating, half, convert, compare, memory_ops, policies, atomics, async_copy, collectives, matrix, wmma,
control) turn instructions into closures over arrays;
scheduler and barriers run the threads of a machine; spaces,
shadow, ordering and release check every access; counters, traffic and report count. Clusters has the
barriers of thread block clusters, distributed what their blocks do in each other's shared memory. A family
adds instructions with ``@handles``; bulk copies would be a family of their own, with their barriers beside
barriers.py.

What is modelled, and how far:

- Blocks run in batches of some 4096 threads, in lockstep where they can. A block that waits for one of
  a later batch (a grid barrier) ends in a Deadlock.
- Thread block clusters have barriers and special registers. They lie along x and run in one batch. Loads
  and stores reach the shared memory of other blocks (``mapa``, ``shared::cluster``, generic addresses),
  atomics and asynchronous copies do not. Before the first of them a barrier of the cluster has to show that
  the other blocks run, behind the last one has to keep them from exiting: other ways to know are not seen.
- Threads that have exited do not count at block barriers, as on hardware. In the mask of a ``.sync``
  instruction they are a fault: the ISA lets some of them pass, the simulator does not.
- Matrix products are exact, summed in float64 and rounded once. ``approx`` functions are rounded to
  nearest.
- Races are found by happens-before: program order, barriers of all kinds, ``bar.warp.sync``, and fences
  with atomics. Lanes of one warp are not ordered by running together, and matrix loads and stores
  belong to no lane in particular. What a thread acquires through memory counts for its warp.
- Base addresses of ``wmma`` tiles are aligned as the ISA says (to the fragment), their lines to 16
  bytes, which is what the CUDA interface promises to accept.
- Calls are refused: device functions must be inlined. Module variables start afresh at every launch.
"""

from __future__ import annotations

from fftgen.simulator.faults import (
    Deadlock,
    DivergedCollective,
    GlobalRace,
    InvalidPolicy,
    LaunchError,
    Misaligned,
    OutOfBounds,
    ParseError,
    ReadOnlyWrite,
    SharedRace,
    SimulationError,
    Trap,
    UninitializedRead,
    UnknownInstruction,
)
from fftgen.simulator.launch import simulate
from fftgen.simulator.memory import DeviceMemory
from fftgen.simulator.parser import parse
from fftgen.simulator.report import Accesses, BufferCounters, Counters, Report
from fftgen.simulator.syntax import Module

__all__ = [
    "Accesses",
    "BufferCounters",
    "Counters",
    "Deadlock",
    "DeviceMemory",
    "DivergedCollective",
    "GlobalRace",
    "InvalidPolicy",
    "LaunchError",
    "Misaligned",
    "Module",
    "OutOfBounds",
    "ParseError",
    "ReadOnlyWrite",
    "Report",
    "SharedRace",
    "SimulationError",
    "Trap",
    "UninitializedRead",
    "UnknownInstruction",
    "parse",
    "simulate",
]
