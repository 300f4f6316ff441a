"""float32 and float64 arithmetic (PTX ISA, "Floating Point Instructions").

Rounding follows the instruction. The ``approx`` functions are computed in float64 and rounded to nearest,
which is within their documented error.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.half import decode_half
from fftgen.simulator.ops import Modifiers, Op, handles
from fftgen.simulator.rounding import add_odd, canonical, flush, fma_odd, minus_zero, round_f32
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, Array, Type

FP32, FP64, SPECIAL = "fp32", "fp64", "special function"
_F64 = np.float64
Function = Callable[..., Array]


def decode_float(d: Decoder, ins: Instruction) -> Op:
    """Any arithmetic instruction whose type is a floating-point one."""
    kind = TYPES[ins.parts[-1]]
    if kind.kind == "h":
        return decode_half(d, ins)
    mods = Modifiers(ins)
    mods.type()
    name = ins.parts[0]
    mode = mods.take("rn", "rz", "rm", "rp") or "rn"
    ftz = mods.flag("ftz")
    saturate = mods.flag("sat")
    if name in ("min", "max"):
        propagate = mods.flag("NaN")
        xorsign = mods.flag("xorsign")
        if xorsign:
            mods.need("abs")
        function: Function = extreme(name, propagate, xorsign)
        count = 2
    elif name == "div":
        how = mods.take("approx", "full")
        function, count = (_divide_approx if how else _divide(mode, kind)), 2
    elif name in ("neg", "abs"):
        mods.done()
        sign: Function = np.negative if name == "neg" else np.abs
        return d.simple(_family(kind), kind, (lambda a: sign(flush(a))) if ftz else sign, 1)
    else:
        functions = _ARITHMETIC[kind.bits]
        if name not in functions:
            d.refuse(f"type .{kind.name}")
        function, count = functions[name](mode)
    mods.done()
    return d.simple(_family(kind), kind, finish(function, kind, ftz, saturate), count)


def _family(kind: Type) -> str:
    return FP32 if kind.bits == 32 else FP64


def finish(function: Function, kind: Type, ftz: bool, saturate: bool) -> Function:
    """Add flushing, clamping to [0, 1] and the canonical NaN to a function."""
    if kind.bits == 64:
        return function

    def whole(*sources: Array) -> Array:
        result = function(*[flush(s) for s in sources]) if ftz else function(*sources)
        if ftz:
            result = flush(result)
        if saturate:  # a NaN becomes +0
            return np.asarray(np.where(result > 0, np.minimum(result, np.float32(1)), np.float32(0)))
        return canonical(result)

    return whole


def _add(mode: str) -> tuple[Function, int]:
    if mode == "rn":
        return np.add, 2
    return (lambda a, b: _directed_sum(a.astype(_F64), b.astype(_F64), mode)), 2


def _sub(mode: str) -> tuple[Function, int]:
    if mode == "rn":
        return np.subtract, 2
    return (lambda a, b: _directed_sum(a.astype(_F64), -b.astype(_F64), mode)), 2


def _directed_sum(a: Array, b: Array, mode: str) -> Array:
    total = add_odd(a, b)
    return round_f32(minus_zero(total, a, b) if mode == "rm" else total, mode)


def _mul(mode: str) -> tuple[Function, int]:
    if mode == "rn":
        return np.multiply, 2
    return (lambda a, b: round_f32(a.astype(_F64) * b, mode)), 2


_TAIL = np.uint64(0x1FFFFFFF)
_HALF = np.uint64(0x10000000)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 arrays, rounded once to nearest even.

    The product is exact in float64. Rounding the sum twice can only go wrong where the float64 sum looks
    like a tie between two float32 numbers, or where the result is subnormal: there it is done again,
    rounded to odd.
    """
    p = a.astype(_F64) * b
    s = p + c
    near: Array = s.astype(np.float32)
    risky = ((s.view(np.uint64) & _TAIL) == _HALF) | (np.abs(s) < 2.0**-125)
    if risky.any():
        wide = np.broadcast_to(c, s.shape)[risky].astype(_F64)
        near[risky] = fma_odd(np.broadcast_to(p, s.shape)[risky], np.ones(1), wide).astype(np.float32)
    return near


def _fma(mode: str) -> tuple[Function, int]:
    if mode == "rn":
        return fma32, 3
    return (lambda a, b, c: _directed_sum(a.astype(_F64) * b, c.astype(_F64), mode)), 3


def _fma64(mode: str) -> tuple[Function, int]:
    """Rounded once, through exact fractions (slow, and rare in the kernels of this project)."""

    def fma(a: Array, b: Array, c: Array) -> Array:
        result = np.asarray(a * b + c)
        a, b, c = np.broadcast_arrays(a, b, c)
        finite = np.isfinite(a) & np.isfinite(b)
        result = np.where(finite & np.isinf(c), c, result)  # the product may overflow, but is finite
        for i in np.flatnonzero(finite & np.isfinite(c)):
            exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
            if exact:
                try:
                    result[i] = float(exact)
                except OverflowError:
                    result[i] = np.inf if exact > 0 else -np.inf
        return result

    return fma, 3


def _plain64(function: Function, count: int) -> Callable[[str], tuple[Function, int]]:
    return lambda mode: (function, count)


_ARITHMETIC: dict[int, dict[str, Callable[[str], tuple[Function, int]]]] = {
    32: {"add": _add, "sub": _sub, "mul": _mul, "fma": _fma, "mad": _fma},
    64: {
        "add": _plain64(np.add, 2),
        "sub": _plain64(np.subtract, 2),
        "mul": _plain64(np.multiply, 2),
        "fma": _fma64,
        "mad": _fma64,
    },
}


def _divide_approx(a: Array, b: Array) -> Array:
    return (a.astype(_F64) / b).astype(np.float32)


def _directed(near: Array, error_sign: Array, mode: str) -> Array:
    """Move a nearest float32 by one place where the mode wants it; ``error_sign``: exact minus near."""
    down, up = np.float32(-np.inf), np.float32(np.inf)
    if mode == "rm":
        return np.where(error_sign < 0, np.nextafter(near, down), near)
    if mode == "rp":
        return np.where(error_sign > 0, np.nextafter(near, up), near)
    away = (error_sign != 0) & ((error_sign < 0) == (near > 0))
    return np.where(away, np.nextafter(near, np.float32(0)), near)


def _excess(near: Array, error: Array, finite: Array) -> Array:
    """The sign of exact minus near; an infinity that stands for a finite quotient is too large."""
    overflow = np.isinf(near) & finite
    return np.where(np.isfinite(near), error, np.where(overflow, -np.sign(near), 0.0))


def _divide(mode: str, kind: Type) -> Function:
    if mode == "rn" or kind.bits == 64:
        return np.divide

    def divide(a: Array, b: Array) -> Array:
        near = a / b
        error = (a.astype(_F64) - near.astype(_F64) * b) * np.sign(b)
        return _directed(near, _excess(near, error, np.isfinite(a) & (b != 0)), mode)

    return divide


def extreme(name: str, propagate: bool, xorsign: bool = False) -> Function:
    """min or max: -0 is below +0; a NaN loses against a number unless ``propagate`` (``.NaN``)."""
    smallest = name == "min"
    pick: Function = (
        (np.minimum if smallest else np.maximum) if propagate else (np.fmin if smallest else np.fmax)
    )

    def choose(a: Array, b: Array) -> Array:
        sign = np.signbit(a) ^ np.signbit(b) if xorsign else None
        if xorsign:
            a, b = np.abs(a), np.abs(b)
        result = pick(a, b)
        zero = (a == 0) & (b == 0)
        if zero.any():
            minus = (np.signbit(a) | np.signbit(b)) if smallest else (np.signbit(a) & np.signbit(b))
            result = np.where(zero, np.where(minus, a.dtype.type(-0.0), a.dtype.type(0.0)), result)
        if sign is not None:
            result = np.where(sign, -result, result)
        return result

    return choose


@handles("fma")
def _decode_fma(d: Decoder, ins: Instruction) -> Op:
    return decode_float(d, ins)


def _wide(function: Function) -> Function:
    return lambda a: function(a.astype(_F64)).astype(np.float32)


_APPROX: dict[str, Function] = {
    "rcp": lambda a: 1.0 / a,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "lg2": np.log2,
    "ex2": np.exp2,
    "tanh": np.tanh,
}


_EXACT: dict[str, Function] = {"rcp": lambda a: np.float32(1) / a, "sqrt": np.sqrt}


@handles("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh")
def _function(d: Decoder, ins: Instruction) -> Op:
    kind = TYPES.get(ins.parts[-1])
    if kind is not None and kind.kind == "h":
        return decode_half(d, ins)
    mods = Modifiers(ins)
    kind = mods.type("f32", "f64")
    name = ins.parts[0]
    approx = mods.flag("approx")
    mode = mods.take("rn", "rz", "rm", "rp")
    ftz = mods.flag("ftz")
    mods.done()
    if (mode is None) == (not approx) and name not in ("sin", "cos", "lg2", "ex2", "tanh"):
        d.refuse("one of .approx and a rounding is needed")
    if mode is not None and name not in ("rcp", "sqrt"):
        d.refuse(f"modifier .{mode}")
    function = _APPROX[name]
    if kind.bits == 64:
        if name not in ("rcp", "sqrt", "rsqrt") or (mode not in (None, "rn")):
            d.refuse("this function of type .f64")
        return d.simple(FP64, kind, function, 1)
    if mode in (None, "rn"):
        chosen = _EXACT[name] if mode == "rn" else _wide(function)
        return d.simple(SPECIAL, kind, finish(chosen, kind, ftz, False), 1)
    rounding = str(mode)

    def directed(a: Array) -> Array:
        if name == "rcp":
            near = np.float32(1) / a
            error = (1.0 - near.astype(_F64) * a) * np.sign(a)
        else:
            near = np.sqrt(a)
            error = a.astype(_F64) - near.astype(_F64) * near
        return _directed(near, _excess(near, error, np.isfinite(a) & (a != 0)), rounding)

    return d.simple(SPECIAL, kind, finish(directed, kind, ftz, False), 1)


@handles("copysign")
def _copysign(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("f32", "f64")
    mods.done()
    return d.simple(_family(kind), kind, lambda a, b: np.copysign(b, a), 2)  # the sign is that of the first


@handles("testp")
def _testp(d: Decoder, ins: Instruction) -> Op:
    mods = Modifiers(ins)
    kind = mods.type("f32", "f64")
    test = mods.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    mods.done()
    least = np.finfo(kind.dtype).tiny
    tests: dict[str, Function] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & ((np.abs(a) >= least) | (a == 0)),  # zeros count as normal
        "subnormal": lambda a: (np.abs(a) < least) & (a != 0),
    }
    return d.map("compare", TYPES["pred"], ins.operands[0], [d.get(ins.operands[1], kind)], tests[test])
