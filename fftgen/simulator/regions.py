"""Regions of memory, and where the variables of a kernel lie in them."""

from __future__ import annotations

import numpy as np

from fftgen.simulator.faults import LaunchError
from fftgen.simulator.shadow import Shadow
from fftgen.simulator.syntax import Entry, Module, Variable
from fftgen.simulator.types import UNSIGNED, Array

SHARED_WINDOW = 0x7F01_2300_0000
LOCAL_WINDOW = 0x7E01_3700_0000
RANK_SHIFT = 24
"""Shared addresses hold the rank of a block from this bit on (distributed.py)."""
_MODULE_BASE = 0x0B00_5000_0100


class Region:
    """A range of memory that accesses go to: a buffer, or shared or local memory of all running blocks."""

    def __init__(
        self, name: str, kind: str, base: int, data: Array, writable: bool, written: Array | None
    ) -> None:
        self.name = name
        self.kind = kind
        self.base = base
        self.size = int(data.size)
        self.bytes = data
        self.writable = writable
        self.written = written
        self.shadow: Shadow | None = None
        self._units: dict[tuple[int, int], Array] = {}

    def units(self, nbytes: int, count: int = 1) -> Array:
        """The bytes as (units, count) unsigned integers of ``nbytes`` each; a ragged tail is left out."""
        found = self._units.get((nbytes, count))
        if found is None:
            whole = self.size // (nbytes * count) * (nbytes * count)
            found = self.bytes[:whole].view(UNSIGNED[8 * nbytes]).reshape(-1, count)
            self._units[nbytes, count] = found
        return found


class Layout:
    """Offsets of shared and local variables, and their sizes: static shared memory first, then dynamic."""

    def __init__(self, module: Module, entry: Entry, dynamic_bytes: int) -> None:
        self.symbols: dict[str, int] = {}
        self.dynamic_bytes = dynamic_bytes
        offset = local = 0
        dynamic: list[Variable] = []
        used = entry.symbols
        for variable in (*(v for v in module.variables.values() if v.name in used), *entry.variables):
            if variable.space == "shared" and variable.size == 0:
                dynamic.append(variable)
            elif variable.space == "shared":
                offset = -(-offset // variable.align) * variable.align
                self.symbols[variable.name] = offset
                offset += variable.size
            elif variable.space == "local":
                local = -(-local // variable.align) * variable.align
                self.symbols[variable.name] = local
                local += variable.size
        self.static_bytes = offset
        if dynamic or dynamic_bytes:
            align = max([16, *(v.align for v in dynamic)])
            offset = -(-offset // align) * align
            for variable in dynamic:
                self.symbols[variable.name] = offset
            offset += dynamic_bytes
        self.shared_bytes = offset
        self.shared_stride = max(-(-offset // 128) * 128, 128)
        self.local_bytes = -(-local // 16) * 16


def module_regions(module: Module, entry: Entry, params: bytes) -> tuple[list[Region], dict[str, int]]:
    """Fresh .global and .const variables and the parameter block, with the addresses of their names."""
    regions: list[Region] = []
    symbols: dict[str, int] = {}
    base = _MODULE_BASE
    placed: list[tuple[Variable, Array]] = []
    for variable in module.variables.values():
        if variable.space not in ("global", "const"):
            continue
        if variable.size == 0:
            raise LaunchError(f"variable {variable.name} is extern: link it or pass a buffer")
        data = np.zeros(variable.size, np.uint8)
        if variable.initial is not None:
            data[: len(variable.initial)] = np.frombuffer(variable.initial, np.uint8)
        region = Region(variable.name, variable.space, base, data, variable.space == "global", None)
        if region.writable:
            region.shadow = Shadow(variable.name, region.size, False, True)
        regions.append(region)
        symbols[variable.name] = base
        placed.append((variable, data))
        base += -(-(variable.size + 4096) // 256) * 256
    for variable, data in placed:
        for offset, name, extra in variable.pointers:
            if name not in symbols:
                raise LaunchError(f"{variable.name} points to {name}, which is no module variable")
            data[offset : offset + 8] = np.array([symbols[name] + extra], np.uint64).view(np.uint8)
    block = np.frombuffer(params, np.uint8).copy() if params else np.zeros(1, np.uint8)
    regions.append(Region("param", "param", base, block, False, None))
    for param in entry.params:
        symbols[param.name] = base + param.offset
    return regions, symbols
