"""Special registers (PTX ISA, "Special Registers")."""

from __future__ import annotations

import numpy as np

from fftgen.simulator.faults import UnknownInstruction
from fftgen.simulator.machine import Machine
from fftgen.simulator.types import Array


def special(m: Machine, name: str) -> Array:
    """The values of a special register in every thread (uint32; uint64 for the 64-bit clocks).

    Clocks count executed instructions of the machine: they grow, and mean nothing else. All blocks are
    told that they run on multiprocessor 0 of 1.
    """
    if name.startswith(("%clock", "%globaltimer")):
        wide = name in ("%clock64", "%globaltimer")
        m.clock += 1
        m.clock_pc.append(-1)
        value = m.clock >> 32 if name.endswith("hi") else m.clock
        return np.full(m.size, value, np.uint64 if wide else np.uint32)
    found = m.specials.get(name)
    if found is None:
        found = m.specials[name] = np.ascontiguousarray(_compute(m, name), np.uint32)
    return found


def _compute(m: Machine, name: str) -> Array:
    word, _, axis = name[1:].partition(".")
    within = m.numbers % m.block_size
    lane = (m.numbers & 31).astype(np.uint32)
    one = np.uint32(1)
    bx, by, _bz = m.block
    if axis:
        which = "xyzw".index(axis)
        if which == 3:
            return np.zeros(m.size, np.uint32)
        if word == "tid":
            return (within % bx, within // bx % by, within // (bx * by))[which].astype(np.uint32)
        if word == "ntid":
            return np.full(m.size, m.block[which], np.uint32)
        along = m.cluster if which == 0 else 1  # without clusters every block is a cluster of its own
        places = {
            "ctaid": [b[which] for b in m.blocks],
            "clusterid": [b[which] // along for b in m.blocks],
            "cluster_ctaid": [b[which] % along for b in m.blocks],
        }
        if word in places:
            return np.array(places[word], np.uint32)[m.block_of]
        if word == "nctaid":
            return np.full(m.size, m.grid[which], np.uint32)
        if word == "nclusterid":
            return np.full(m.size, m.grid[which] // along, np.uint32)
        if word == "cluster_nctaid":
            return np.full(m.size, along, np.uint32)
    values: dict[str, Array] = {
        "laneid": lane,
        "warpid": (within >> 5).astype(np.uint32),
        "lanemask_eq": one << lane,
        "lanemask_lt": (one << lane) - one,
        "lanemask_le": ((one << lane) - one) | (one << lane),
        "lanemask_gt": ~(((one << lane) - one) | (one << lane)),
        "lanemask_ge": ~((one << lane) - one),
    }
    if word in values:
        return values[word]
    if word == "cluster_ctarank":
        return np.array([b[0] % m.cluster for b in m.blocks], np.uint32)[m.block_of]
    constants = {
        "nwarpid": m.block_warps,
        "smid": 0,
        "nsmid": 1,
        "gridid": 1,
        "cluster_nctarank": m.cluster,
        "is_explicit_cluster": int(m.cluster > 1),
        "dynamic_smem_size": m.spaces.dynamic_bytes,
        "total_smem_size": m.spaces.shared_bytes,
    }
    if word in constants:
        return np.full(m.size, constants[word], np.uint32)
    raise UnknownInstruction(f"special register {name} is not implemented")
