"""What a simulated kernel did, as numbers: per kernel and per source line, as a table and as JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fftgen.simulator.counters import Counts
from fftgen.simulator.ops import Op
from fftgen.simulator.syntax import Entry, Module


def _add(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})}


@dataclass(frozen=True)
class Accesses:
    """Requests of one kind. ``units`` are 32-byte sectors (device memory) or wavefronts (shared memory);

    ``least`` is how few would have served the same requests. ``distinct`` counts different bytes (device
    memory, whole kernel only): the compulsory traffic.
    """

    requests: int = 0
    bytes: int = 0
    units: int = 0
    least: int = 0
    distinct: int = 0

    def __add__(self, other: Accesses) -> Accesses:
        return Accesses(
            self.requests + other.requests,
            self.bytes + other.bytes,
            self.units + other.units,
            self.least + other.least,
            self.distinct + other.distinct,
        )


@dataclass(frozen=True)
class BufferCounters:
    """Traffic of one buffer."""

    loads: Accesses = field(default_factory=Accesses)
    stores: Accesses = field(default_factory=Accesses)
    atomics: Accesses = field(default_factory=Accesses)

    def __add__(self, other: BufferCounters) -> BufferCounters:
        return BufferCounters(
            self.loads + other.loads, self.stores + other.stores, self.atomics + other.atomics
        )


@dataclass(frozen=True)
class Counters:
    """Exact counts. Instructions, tensor operations and barriers count warps that execute them.

    ``instructions`` by class; ``opcodes`` by full opcode; ``tensor`` by shape and types; ``buffers`` by name;
    ``block_barriers`` completed barriers of blocks (whole kernel only); ``remote_loaded`` and
    ``remote_stored`` bytes, of those in the accesses to shared memory, that other blocks of the cluster hold.
    """

    instructions: Mapping[str, int] = field(default_factory=dict)
    opcodes: Mapping[str, int] = field(default_factory=dict)
    tensor: Mapping[str, int] = field(default_factory=dict)
    buffers: Mapping[str, BufferCounters] = field(default_factory=dict)
    shared_loads: Accesses = field(default_factory=Accesses)
    shared_stores: Accesses = field(default_factory=Accesses)
    shared_atomics: Accesses = field(default_factory=Accesses)
    barriers: int = 0
    block_barriers: int = 0
    remote_loaded: int = 0
    remote_stored: int = 0

    @property
    def total_instructions(self) -> int:
        return sum(self.instructions.values())

    @property
    def shared_wavefronts(self) -> int:
        return self.shared_loads.units + self.shared_stores.units + self.shared_atomics.units

    @property
    def shared_wavefronts_least(self) -> int:
        return self.shared_loads.least + self.shared_stores.least + self.shared_atomics.least

    def __add__(self, other: Counters) -> Counters:
        names = sorted({*self.buffers, *other.buffers})
        none = BufferCounters()
        return Counters(
            _add(self.instructions, other.instructions),
            _add(self.opcodes, other.opcodes),
            _add(self.tensor, other.tensor),
            {n: self.buffers.get(n, none) + other.buffers.get(n, none) for n in names},
            self.shared_loads + other.shared_loads,
            self.shared_stores + other.shared_stores,
            self.shared_atomics + other.shared_atomics,
            self.barriers + other.barriers,
            self.block_barriers + other.block_barriers,
            self.remote_loaded + other.remote_loaded,
            self.remote_stored + other.remote_stored,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and dictionaries."""
        return {
            "instructions": dict(self.instructions),
            "opcodes": dict(self.opcodes),
            "tensor": dict(self.tensor),
            "buffers": {
                name: {
                    "loads": _sectors(b.loads),
                    "stores": _sectors(b.stores),
                    "atomics": _sectors(b.atomics),
                }
                for name, b in self.buffers.items()
            },
            "shared": {
                "loads": _wavefronts(self.shared_loads),
                "stores": _wavefronts(self.shared_stores),
                "atomics": _wavefronts(self.shared_atomics),
                **self._remote(),
            },
            "barriers": self.barriers,
            "block_barriers": self.block_barriers,
        }

    def _remote(self) -> dict[str, int]:
        """Bytes that crossed between blocks, for the few kernels where any did."""
        found = {"remote_loaded": self.remote_loaded, "remote_stored": self.remote_stored}
        return found if any(found.values()) else {}


def _sectors(a: Accesses) -> dict[str, int]:
    return {
        "requests": a.requests,
        "bytes": a.bytes,
        "sectors": a.units,
        "sectors_least": a.least,
        "distinct_bytes": a.distinct,
        "compulsory_sectors": -(-a.distinct // 32),
    }


def _wavefronts(a: Accesses) -> dict[str, int]:
    return {"requests": a.requests, "bytes": a.bytes, "wavefronts": a.units, "wavefronts_least": a.least}


@dataclass(frozen=True)
class Report:
    """Counts of launches. ``by_line`` is keyed by the line of the generated source (0: unknown)."""

    kernel: str
    blocks: int
    counters: Counters
    by_line: Mapping[int, Counters]
    source: str | None = None

    @staticmethod
    def of(
        module: Module, entry: Entry, ops: Sequence[Op], counts: Counts, blocks: int, threads: int
    ) -> Report:
        """Add up the counts of a launch."""
        code = entry.instructions
        parts: defaultdict[int, _Builder] = defaultdict(_Builder)
        whole = _Builder()

        def both(pc: int) -> tuple[_Builder, _Builder]:
            return whole, parts[module.line(code[pc].loc) or 0]

        for pc, issued in enumerate(counts.issues):
            if issued:
                for b in both(pc):
                    b.plus(b.instructions, ops[pc].family, issued)
                    b.plus(b.opcodes, ops[pc].instruction.opcode, issued)
        for (pc, name), n in counts.tensor.items():
            for b in both(pc):
                b.plus(b.tensor, name, n)
        for (pc, buffer, what), t in counts.device.items():
            for b in both(pc):
                key = (buffer, what)
                b.device[key] = b.device.get(key, Accesses()) + Accesses(
                    t.requests, t.bytes, t.units, t.least
                )
        for (pc, what), t in counts.shared.items():
            for b in both(pc):
                b.shared[what] = b.shared.get(what, Accesses()) + Accesses(
                    t.requests, t.bytes, t.units, t.least
                )
        for (pc, what), n in counts.remote.items():
            for b in both(pc):
                b.plus(b.remote, what, n)
        for pc, n in counts.barriers.items():
            for b in both(pc):
                b.barriers += n
        for key, distinct in counts.distinct().items():
            whole.device[key] = whole.device.get(key, Accesses()) + Accesses(distinct=distinct)
        whole.block_barriers = counts.block_barriers
        by_line = {line: parts[line].build() for line in sorted(parts)}
        return Report(entry.name, blocks, whole.build(), by_line, module.source)

    def __add__(self, other: Report) -> Report:
        """Counts of both; distinct bytes are those of each launch, added."""
        lines = sorted({*self.by_line, *other.by_line})
        none = Counters()
        name = self.kernel if self.kernel == other.kernel else f"{self.kernel} + {other.kernel}"
        return Report(
            name,
            self.blocks + other.blocks,
            self.counters + other.counters,
            {n: self.by_line.get(n, none) + other.by_line.get(n, none) for n in lines},
            self.source or other.source,
        )

    def merge(self, other: Report) -> Report:
        """The same as ``+``."""
        return self + other

    def to_dict(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "blocks": self.blocks,
            "counters": self.counters.to_dict(),
            "by_line": {str(line): c.to_dict() for line, c in self.by_line.items()},
        }

    def to_json(self, indent: int | None = None) -> str:
        """The counts as JSON; the same counts give the same text."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=True)

    def __str__(self) -> str:
        from fftgen.simulator.table import table

        return table(self)


class _Builder:
    """Sums under way."""

    def __init__(self) -> None:
        self.instructions: dict[str, int] = {}
        self.opcodes: dict[str, int] = {}
        self.tensor: dict[str, int] = {}
        self.device: dict[tuple[str, str], Accesses] = {}
        self.shared: dict[str, Accesses] = {}
        self.remote: dict[str, int] = {}
        self.barriers = 0
        self.block_barriers = 0

    @staticmethod
    def plus(into: dict[str, int], key: str, n: int) -> None:
        into[key] = into.get(key, 0) + n

    def build(self) -> Counters:
        none = Accesses()
        names = sorted({name for name, _ in self.device})
        return Counters(
            dict(sorted(self.instructions.items())),
            dict(sorted(self.opcodes.items())),
            dict(sorted(self.tensor.items())),
            {
                n: BufferCounters(
                    self.device.get((n, "load"), none),
                    self.device.get((n, "store"), none),
                    self.device.get((n, "atomic"), none),
                )
                for n in names
            },
            self.shared.get("load", none),
            self.shared.get("store", none),
            self.shared.get("atomic", none),
            self.barriers,
            self.block_barriers,
            self.remote.get("load", 0),
            self.remote.get("store", 0),
        )
