"""Control flow, fences, barriers of blocks and clusters (PTX ISA, "Control Flow" and "Parallel
Synchronization ...").

Their work is done by the scheduler; here they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from fftgen.simulator.bits import predicate
from fftgen.simulator.decode import Decoder
from fftgen.simulator.faults import Trap
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import BARRIER, BRANCH, CLUSTER, EXIT, Get, Modifiers, Op, Put, handles
from fftgen.simulator.syntax import Instruction, Sym
from fftgen.simulator.types import TYPES

CONTROL, SYNC_FAMILY = "control", "barrier"


@dataclass
class BarrierOp(Op):
    """A block barrier. ``count`` None: all threads of the block. ``reduce``: popc, and, or."""

    number: Get | None = None
    count: Get | None = None
    arrive: bool = False
    reduce: str | None = None
    source: Get | None = None
    result: Put | None = None


@dataclass
class ClusterOp(Op):
    """``barrier.cluster.arrive`` or ``barrier.cluster.wait``. ``release``: an arrival orders what came before
    it.
    """

    arrive: bool = False
    release: bool = True


@handles("bra")
def _branch(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.flag("uni")
    mods.done()
    (target,) = ins.operands
    if not isinstance(target, Sym) or target.name not in d.entry.labels:
        d.refuse("the target is not a label of this kernel")
    return Op(d.pc, ins, CONTROL, BRANCH, target=d.entry.labels[target.name])


@handles("ret", "exit")
def _exit(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.flag("uni")
    mods.done()
    return Op(d.pc, ins, CONTROL, EXIT)


@handles("trap", "brkpt")
def _trap(d: Decoder, ins: Instruction) -> Op:
    Modifiers(ins).done()

    def run(m: Machine, g: Group) -> None:
        m.fault(Trap, ins, f"the kernel executed {ins.opcode}", int(g.threads[0]))

    return d.op(CONTROL, run)


@handles("nanosleep", "membar", "fence", "pmevent")
def _nothing(d: Decoder, ins: Instruction) -> Op:
    """Memory is sequentially consistent here: fences change no value, but race detection follows them."""
    mods = Modifiers(ins)
    name = ins.parts[0]
    if name == "nanosleep":
        mods.need("u32")
        read = d.get(ins.operands[0], TYPES["u32"])
        mods.done()

        def run(m: Machine, g: Group) -> None:
            read(m, g)

        return d.op(CONTROL, run)
    if name == "pmevent":
        mods.done()
        return d.op(CONTROL, lambda m, g: None)
    if name == "membar":
        scope = mods.need("gl", "cta", "sys")
    else:
        if "proxy" in mods.parts or any(p.startswith("proxy") or "mbarrier" in p for p in mods.parts):
            d.refuse("proxy fences")
        mods.take("sc", "acq_rel", "acquire", "release")
        scope = mods.need("cta", "cluster", "gpu", "sys")
    mods.done()
    pc = d.pc
    return d.op("fence", lambda m, g: m.releases.fence(g.threads, scope != "cta", m.tick(pc)))


@handles("call")
def _call(d: Decoder, ins: Instruction) -> Op:
    d.refuse("functions must be inlined (mark them __forceinline__)")


@handles("griddepcontrol")
def _dependent_launch(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("wait", "launch_dependents")
    mods.done()
    return d.op(CONTROL, lambda m, g: None)


@handles("setmaxnreg")
def _register_count(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    mods.need("inc", "dec")
    mods.need("sync")
    mods.need("aligned")
    mods.need("u32")
    mods.done()
    return d.op(CONTROL, lambda m, g: None)


@handles("bar", "barrier")
def _barrier(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    if mods.flag("warp"):
        return _warp_barrier(d, ins, mods)
    if ins.parts[0] == "barrier" and mods.flag("cluster"):
        return _cluster_barrier(d, ins, mods)
    mods.flag("cta")
    what = mods.need("sync", "arrive", "red")
    aligned = mods.flag("aligned") or ins.parts[0] == "bar"
    op = BarrierOp(d.pc, ins, SYNC_FAMILY, BARRIER, aligned=aligned, arrive=what == "arrive")
    operands = list(ins.operands)
    if what == "red":
        op.reduce = mods.need("popc", "and", "or")
        mods.need("u32" if op.reduce == "popc" else "pred")
        op.result = d.put(operands.pop(0), TYPES["u32" if op.reduce == "popc" else "pred"])
        op.source = predicate(d, operands.pop())
    mods.done()
    if not operands or len(operands) > 2 or (what == "arrive" and len(operands) != 2):
        d.refuse(f"{len(ins.operands)} operands")
    op.number = d.get(operands[0], TYPES["u32"])
    if len(operands) == 2:
        op.count = d.get(operands[1], TYPES["u32"])
    return op


def _cluster_barrier(d: Decoder, ins: Instruction, mods: Modifiers) -> Op:
    what = mods.need("arrive", "wait")
    semantics = mods.take("release", "relaxed") if what == "arrive" else mods.take("acquire")
    aligned = mods.flag("aligned")
    mods.done()
    if ins.operands:
        d.refuse(f"{len(ins.operands)} operands")
    return ClusterOp(
        d.pc,
        ins,
        "cluster barrier",
        CLUSTER,
        aligned=aligned,
        arrive=what == "arrive",
        release=semantics != "relaxed",
    )


def _warp_barrier(d: Decoder, ins: Instruction, mods: Modifiers) -> Op:
    mods.need("sync")
    mods.done()
    mask = d.get(ins.operands[0], TYPES["u32"])
    pc = d.pc

    def run(m: Machine, g: Group) -> None:
        now = m.tick(pc)
        m.order_lanes(g, mask(m, g), now)

    return d.collective(SYNC_FAMILY, run, mask)
