"""cvt and cvta (PTX ISA, "Data Movement and Conversion Instructions")."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.half import values
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.regions import LOCAL_WINDOW, RANK_SHIFT, SHARED_WINDOW
from fftgen.simulator.rounding import (
    add_odd,
    bf16_bits,
    bf16_from_f64,
    canonical,
    f16_bits,
    f32_odd,
    flush,
    round_f32,
    two_sum,
)
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, Array, Type

CONVERT = "convert"
_INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
_F64 = np.float64


@handles("cvt")
def _cvt(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    source = mods.type()
    if mods.parts and mods.parts[-1] in ("f16x2", "bf16x2"):
        return _pair(d, ins, mods, source)
    kind = mods.type()
    if "p" in (kind.kind, source.kind) or "x2" in source.name:
        d.refuse(f"from .{source.name} to .{kind.name}")
    integral = mods.take(*_INTEGRAL)
    mode = mods.take("rn", "rz", "rm", "rp", "rna")
    ftz, saturate, relu = mods.flag("ftz"), mods.flag("sat"), mods.flag("relu")
    finite = mods.flag("satfinite")
    mods.done()
    if finite or (relu and kind.kind != "h"):
        d.refuse("modifier .satfinite" if finite else "modifier .relu")
    d.arity(2)
    integer = "bus"
    if source.kind in integer and kind.kind in integer:
        function = _integers(source, kind, saturate)
    elif source.kind in integer:
        function = _to_float(d, source, kind, mode)
    elif kind.kind in integer:
        function = _to_integer(d, source, kind, integral, ftz)
    else:
        function = _floats(d, source, kind, mode, integral, ftz, saturate, relu)
    get = d.get(ins.operands[1], source, widen=True)
    return d.map(CONVERT, kind, ins.operands[0], [get], function, widen=True)


def _integers(source: Type, kind: Type, saturate: bool) -> Callable[[Array], Array]:
    dtype = kind.dtype
    if not saturate:
        return lambda a: a.astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    own = np.iinfo(source.dtype)
    bottom, top = source.dtype.type(max(low, own.min)), source.dtype.type(min(high, own.max))
    return lambda a: np.clip(a, bottom, top).astype(dtype)


def _to_float(d: Decoder, source: Type, kind: Type, mode: str | None) -> Callable[[Array], Array]:
    rounding = mode or "rn"

    def wide(a: Array) -> Array:
        if source.bits < 64:
            return a.astype(_F64)
        high = (a >> source.dtype.type(32)).astype(_F64) * 2.0**32
        return add_odd(high, (a & source.dtype.type(0xFFFFFFFF)).astype(_F64))

    if kind.name == "f64":
        if source.bits == 64 and rounding != "rn":
            return lambda a: _directed64(a, source, rounding)
        return lambda a: a.astype(_F64)
    if kind.name == "f32":
        return lambda a: round_f32(wide(a), rounding)
    if kind.name == "bf16":
        return lambda a: bf16_from_f64(wide(a)) if rounding == "rn" else bf16_bits(f32_odd(wide(a)), rounding)
    return lambda a: f16_bits(wide(a), rounding)


def _directed64(a: Array, source: Type, mode: str) -> Array:
    """64-bit integers to float64, rounded to zero, down or up."""
    high = (a >> source.dtype.type(32)).astype(_F64) * 2.0**32
    near, error = two_sum(high, (a & source.dtype.type(0xFFFFFFFF)).astype(_F64))
    if mode == "rz":
        wrong = (error != 0) & ((error < 0) == (near > 0))
        return np.where(wrong, np.nextafter(near, 0.0), near)
    wrong = error < 0 if mode == "rm" else error > 0
    return np.where(wrong, np.nextafter(near, -np.inf if mode == "rm" else np.inf), near)


def _float_source(source: Type) -> Callable[[Array], Array]:
    if source.kind == "f":
        return lambda a: a
    if source.name == "tf32":
        return lambda a: a.view(np.float32)
    brain = source.name == "bf16"
    return lambda a: values(np.ascontiguousarray(a), brain)


def _to_integer(
    d: Decoder, source: Type, kind: Type, integral: str | None, ftz: bool
) -> Callable[[Array], Array]:
    if integral is None:
        d.refuse("a rounding to integers is needed")
    to_integral, decode = _INTEGRAL[integral], _float_source(source)
    info = np.iinfo(kind.dtype)
    dtype = kind.dtype
    nan = 1 << (kind.bits - 1) if source.bits == 64 or kind.bits == 64 else 0
    nan_value = np.array([nan], f"u{kind.nbytes}").view(dtype)[0]

    def convert(a: Array) -> Array:
        """Out of range clamps; a NaN gives 0, or the top bit where 64-bit types take part."""
        value = decode(a)
        if ftz:
            value = flush(value)
        x = to_integral(value.astype(_F64))
        low = x <= float(info.min)
        high = x >= float(info.max)
        bad = np.isnan(x)
        safe = np.where(low | high | bad, 0.0, x)
        result = safe.astype(dtype)
        result = np.where(low, dtype.type(info.min), np.where(high, dtype.type(info.max), result))
        return np.where(bad, nan_value, result)

    return convert


def _floats(
    d: Decoder,
    source: Type,
    kind: Type,
    mode: str | None,
    integral: str | None,
    ftz: bool,
    saturate: bool,
    relu: bool,
) -> Callable[[Array], Array]:
    decode = _float_source(source)
    rounding = mode or "rn"
    if rounding == "rna" and kind.name != "tf32":
        d.refuse("modifier .rna")
    flushes = ftz and "f32" in (source.name, kind.name)

    def convert(a: Array) -> Array:
        x = decode(a)
        if flushes and source.name == "f32":
            x = flush(x)
        if integral is not None:
            x = _INTEGRAL[integral](x)
        if saturate:
            x = np.where(x > 0, np.minimum(x, x.dtype.type(1)), x.dtype.type(0))
        if relu:
            x = np.where(x < 0, x.dtype.type(0), x)
        if kind.name == "f64":
            return x.astype(_F64)
        if kind.name == "f32":
            if x.dtype == _F64:
                x = round_f32(x, rounding)
            return canonical(flush(x) if flushes else x)
        if kind.name == "f16":
            return f16_bits(x, rounding)
        if kind.name == "bf16":
            return bf16_bits(f32_odd(x) if x.dtype == _F64 else x, rounding)
        return tf32_bits(x, rounding)

    return convert


def tf32_bits(x: Array, mode: str) -> Array:
    """float32 to tf32 (10 explicit significand bits), kept in 32 bits with the low 13 clear."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    if mode == "rna":  # ties away from zero
        rounded = u + np.uint32(0x1000)
    elif mode == "rn":
        rounded = u + (np.uint32(0xFFF) + ((u >> np.uint32(13)) & np.uint32(1)))
    else:
        rounded = u
    result = rounded & np.uint32(0xFFFFE000)
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), np.where(np.isinf(x), u, result))


def _pair(d: Decoder, ins: Instruction, mods: Modifiers, source: Type) -> Op:
    """cvt.rn.bf16x2.f32 d, a, b: a goes to the upper half, b to the lower."""
    brain = mods.parts.pop() == "bf16x2"
    mode = mods.need("rn", "rz")
    relu, ftz = mods.flag("relu"), mods.flag("ftz")
    mods.done()
    if source.name != "f32" or ftz:
        d.refuse(f"from .{source.name}" if not ftz else "modifier .ftz")
    d.arity(3)
    upper, lower = d.get(ins.operands[1], source), d.get(ins.operands[2], source)
    put = d.put(ins.operands[0], TYPES["b32"])

    def run(m: Machine, g: Group) -> None:
        both = np.empty((g.n, 2), np.float32)
        both[:, 0], both[:, 1] = lower(m, g), upper(m, g)
        flat = both.reshape(-1)
        if relu:
            flat = np.where(flat < 0, np.float32(0), flat)
        bits = bf16_bits(flat, mode) if brain else f16_bits(flat, mode)
        put(m, g, np.ascontiguousarray(bits).view(np.uint32))

    return d.op(CONVERT, run)


@handles("cvta")
def _cvta(d: Decoder, ins: Instruction) -> Op:
    """Shared and local addresses lie in windows of the generic space; all others are generic already."""
    mods = Modifiers(ins)
    kind = mods.type("u64", "u32")
    to = mods.flag("to")
    space = mods.need("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param")
    mods.done()
    if kind.bits != 64:
        d.refuse("addresses have 64 bits")
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW}.get(space.split("::")[0], 0)
    shift = np.uint64((-window if to else window) & 0xFFFFFFFFFFFFFFFF)
    return d.simple(CONVERT, kind, lambda a: a + shift, 1)


@handles("isspacep")
def _isspacep(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    space = mods.need("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param")
    mods.done()
    get = d.get(ins.operands[1], TYPES["u64"])
    put = d.put(ins.operands[0], TYPES["pred"])

    def run(m: Machine, g: Group) -> None:
        a = get(m, g)
        shared = (a - np.uint64(SHARED_WINDOW)) < np.uint64(2**32)
        local = (a - np.uint64(LOCAL_WINDOW)) < np.uint64(2**32)
        if space in ("shared", "shared::cta"):  # what is mapped to a block lies behind
            put(m, g, (a - np.uint64(SHARED_WINDOW)) < np.uint64(1 << RANK_SHIFT))
        elif space == "shared::cluster":
            put(m, g, shared)
        elif space == "local":
            put(m, g, local)
        else:
            put(m, g, m.spaces.is_space(a, space) & ~shared & ~local)

    return d.op(CONVERT, run)
