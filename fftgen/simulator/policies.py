"""createpolicy, and the cache hints of accesses (PTX ISA, "createpolicy", "Cache Eviction Priority")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import InvalidPolicy
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.syntax import Instruction, Operand
from fftgen.simulator.types import TYPES

# Policies are opaque: these numbers mean nothing elsewhere.
_POLICIES = {
    f"L2::evict_{name}": np.uint64(0x706F6C6963790000 + i)
    for i, name in enumerate(("last", "normal", "first", "unchanged"))
}


@handles("createpolicy")
def _policy(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    if not mods.flag("fractional"):
        d.refuse("policies other than .fractional")
    value = _POLICIES[mods.need(*_POLICIES)]
    mods.take("L2::evict_unchanged")  # of the lines that are not in the fraction
    mods.need("b64")
    mods.done()
    put = d.put(ins.operands[0], TYPES["b64"])
    return d.op("createpolicy", lambda m, g: put(m, g, np.full(g.n, value)))


def hinted(
    d: Decoder, ins: Instruction, operands: list[Operand], hint: bool
) -> Callable[[Machine, Group], None]:
    """Takes the policy of an access, its last operand, if it has one. Returns what checks it where the access
    runs: it changes no value."""
    if not hint:
        return lambda m, g: None
    read, known = d.get(operands.pop(), TYPES["b64"]), np.array(list(_POLICIES.values()))

    def check(m: Machine, g: Group) -> None:
        wrong = np.flatnonzero(~np.isin(np.broadcast_to(read(m, g), g.n), known))
        if len(wrong):
            thread = int(g.threads[wrong[0]])
            m.fault(InvalidPolicy, ins, "the cache hint is no policy that createpolicy made", thread)

    return check
