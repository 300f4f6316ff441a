"""simulate(): check a launch, decode the kernel once, run its blocks in batches, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fftgen.simulator import (  # noqa: F401 - the instruction families register themselves
    async_copy,
    atomics,
    bits,
    collectives,
    compare,
    control,
    convert,
    distributed,
    floating,
    integer,
    matrix,
    memory_ops,
    moves,
    policies,
    wmma,
)
from fftgen.simulator.async_copy import AsyncCopies
from fftgen.simulator.counters import Counts
from fftgen.simulator.dataflow import leaders, perhaps_unwritten
from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import Dim3, LaunchError
from fftgen.simulator.garbage import none_to_collect
from fftgen.simulator.machine import History, Machine
from fftgen.simulator.memory import DeviceMemory
from fftgen.simulator.ops import Op
from fftgen.simulator.parser import parse
from fftgen.simulator.report import Report
from fftgen.simulator.scheduler import Scheduler
from fftgen.simulator.spaces import Spaces
from fftgen.simulator.syntax import Entry, Module

_BATCH_THREADS = 4096
_BATCH_SHARED = 4 << 20
_MAX_SHARED = 228 * 1024
_MAX_CLUSTER = 8


@dataclass(frozen=True)
class _Kernel:
    """A decoded entry."""

    ops: list[Op]
    leaders: set[int]


def simulate(
    module: Module | str,
    entry: str,
    *,
    grid: Sequence[int],
    block: Sequence[int],
    params: Sequence[bytes],
    memory: DeviceMemory,
    shared_bytes: int = 0,
    blocks: Sequence[Sequence[int]] | None = None,
    cluster: int = 1,
    seed: int = 0,
    max_steps: int = 4_000_000,
) -> Report:
    """Run a kernel for all blocks of a grid, or for the ``blocks`` named, and count what it does.

    ``grid`` and ``block`` are (x, y, z); ``params`` holds one little-endian bytes object per kernel
    parameter; ``shared_bytes`` is the size of the dynamic shared memory. ``cluster`` is the
    number of blocks along x of a thread block cluster, as the launch attribute gives it (1: no clusters);
    ``blocks`` must name whole clusters. ``seed`` draws the lane mapping
    of ``wmma`` fragments. ``max_steps`` bounds the control instructions, so that an endless loop ends in
    a Deadlock. Module variables start from their initial values at every launch.

    Raises a SimulationError for every fault of the kernel (see fftgen.simulator.faults), LaunchError for
    a launch that does not fit it.
    """
    if isinstance(module, str):
        module = parse(module)
    kernel_entry = _entry(module, entry)
    grid3, block3 = _dim3("grid", grid), _dim3("block", block)
    _check_cluster(kernel_entry, grid3, cluster)
    chosen = _clusters(_blocks(grid3, blocks), cluster)
    _check_block(kernel_entry, block3)
    packed = _pack(kernel_entry, params)
    spaces = Spaces(module, kernel_entry, memory, shared_bytes, packed)
    if spaces.shared_bytes > _MAX_SHARED:
        raise LaunchError(
            f"{spaces.shared_bytes} bytes of shared memory ({spaces.static_bytes} static, "
            f"{shared_bytes} dynamic) exceed the largest block of any target ({_MAX_SHARED})"
        )
    kernel = _decoded(module, kernel_entry)
    counts = Counts(len(kernel.ops))
    history = History()
    threads = -(-block3[0] * block3[1] * block3[2] // 32) * 32
    batch = max(1, min(_BATCH_THREADS // threads, _BATCH_SHARED // spaces.shared_stride))
    batch = max(cluster, batch // cluster * cluster)
    with np.errstate(all="ignore"):
        for start in range(0, len(chosen), batch):
            m = Machine(
                module,
                kernel_entry,
                grid3,
                block3,
                chosen[start : start + batch],
                seed,
                history,
                len(chosen) > 1,
                cluster,
                len(chosen) > cluster,
            )
            spaces.attach(m)
            m.spaces, m.counts, m.symbols = spaces, counts, spaces.symbols
            m.copies = AsyncCopies(m)
            Scheduler(m, kernel.ops, kernel.leaders, max_steps).run()
            m.releases.close()
    return Report.of(module, kernel_entry, kernel.ops, counts, len(chosen), threads)


def _entry(module: Module, name: str) -> Entry:
    found = module.entries.get(name)
    if found is None:
        raise LaunchError(f"the module has no entry {name!r} (it has: {', '.join(module.entries) or 'none'})")
    return found


def _decoded(module: Module, entry: Entry) -> _Kernel:
    found = module.compiled.get(entry.name)
    if not isinstance(found, _Kernel):
        with none_to_collect():
            maybe, tracked = perhaps_unwritten(entry)
            found = _Kernel(Decoder(module, entry, maybe, tracked).decode(), leaders(entry))
        module.compiled[entry.name] = found
    return found


def _dim3(name: str, values: Sequence[int]) -> Dim3:
    numbers = [int(v) for v in values] + [1] * (3 - len(values))
    if len(numbers) != 3 or min(numbers) < 1:
        raise LaunchError(f"{name} {tuple(values)} must be up to three positive numbers")
    return numbers[0], numbers[1], numbers[2]


def _blocks(grid: Dim3, blocks: Sequence[Sequence[int]] | None) -> list[Dim3]:
    if blocks is None:
        gx, gy, gz = grid
        return [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
    chosen: list[Dim3] = []
    for block in blocks:
        x, y, z = (*(int(b) for b in block), 0, 0, 0)[:3]
        if not (0 <= x < grid[0] and 0 <= y < grid[1] and 0 <= z < grid[2]):
            raise LaunchError(f"block {(x, y, z)} lies outside the grid {grid}")
        chosen.append((x, y, z))
    if len(set(chosen)) != len(chosen) or not chosen:
        raise LaunchError("blocks must name at least one block, and none twice")
    return chosen


def _check_cluster(entry: Entry, grid: Dim3, cluster: int) -> None:
    if not 1 <= cluster <= _MAX_CLUSTER:
        raise LaunchError(
            f"a cluster of {cluster} blocks: a cluster has 1 to {_MAX_CLUSTER} "
            "(more, such as the 16 of some devices, are not portable)"
        )
    if grid[0] % cluster:
        raise LaunchError(f"grid {grid}: x is not a multiple of the {cluster} blocks of a cluster")
    exact = entry.directives.get("reqnctapercluster")
    if exact and tuple([*exact, 1, 1][:3]) != (cluster, 1, 1):
        raise LaunchError(f"clusters of {cluster} blocks are not those that {entry.name} requires: {exact}")
    most = entry.directives.get("maxclusterrank")
    if most and cluster > most[0]:
        raise LaunchError(
            f"a cluster of {cluster} blocks exceeds the {most[0]} that {entry.name} was compiled for"
        )


def _clusters(chosen: list[Dim3], cluster: int) -> list[Dim3]:
    """The blocks with those of a cluster beside each other, its first first."""
    if cluster == 1:
        return chosen
    firsts = dict.fromkeys((x - x % cluster, y, z) for x, y, z in chosen)
    whole = [(x + rank, y, z) for x, y, z in firsts for rank in range(cluster)]
    missing = set(whole) - set(chosen)
    if missing:
        raise LaunchError(
            f"blocks must name whole clusters of {cluster}: block {min(missing)} is missing beside others"
        )
    return whole


def _check_block(entry: Entry, block: Dim3) -> None:
    threads = block[0] * block[1] * block[2]
    if threads > 1024:
        raise LaunchError(f"a block of {threads} threads exceeds 1024")
    most = entry.directives.get("maxntid")
    if most is not None and threads > int(np.prod(most)):
        raise LaunchError(
            f"a block of {threads} threads exceeds the {int(np.prod(most))} "
            f"that {entry.name} was compiled for"
        )
    exact = entry.directives.get("reqntid")
    if exact is not None and tuple([*exact, 1, 1][:3]) != block:
        raise LaunchError(f"block {block} is not the one that {entry.name} requires: {exact}")


def _pack(entry: Entry, params: Sequence[bytes]) -> bytes:
    """The parameter block, each parameter at its offset."""
    if len(params) != len(entry.params):
        raise LaunchError(f"{entry.name} has {len(entry.params)} parameters, {len(params)} were passed")
    block = bytearray(max((p.offset + p.size for p in entry.params), default=0))
    for i, (param, value) in enumerate(zip(entry.params, params, strict=True)):
        data = bytes(value)
        if len(data) != param.size:
            raise LaunchError(
                f"parameter {i} of {entry.name} has {param.size} bytes, {len(data)} were passed"
            )
        block[param.offset : param.offset + param.size] = data
    return bytes(block)
