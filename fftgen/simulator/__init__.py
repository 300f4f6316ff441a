"""A functional simulator of PTX on the CPU, stricter than a GPU and counting what a kernel does.

``parse`` reads PTX, ``DeviceMemory`` holds the buffers, ``simulate`` runs a kernel and returns a Report,
or raises the SimulationError that names the first fault.
"""

from __future__ import annotations

from fftgen.simulator.faults import (
    Deadlock,
    DivergedCollective,
    GlobalRace,
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
