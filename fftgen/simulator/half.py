"""float16 and bfloat16 arithmetic, single and in pairs (PTX ISA, "Half Precision Floating Point
Instructions").

Registers hold bits. A pair is two 16-bit numbers side by side in memory order, so that a view as uint16
is enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fftgen.simulator.decode import Decoder
from fftgen.simulator.machine import Group, Machine
from fftgen.simulator.ops import Get, Modifiers, Op
from fftgen.simulator.rounding import (
    H_NAN,
    bf16_bits,
    bf16_from_f64,
    bf16_value,
    f16_bits,
    f16_value,
    fma_odd,
)
from fftgen.simulator.syntax import Instruction
from fftgen.simulator.types import TYPES, Array, Type

FP16 = "fp16"
_F64 = np.float64
_SIGN = np.uint16(0x8000)


def values(bits: Array, brain: bool) -> Array:
    """float32 values of 16-bit patterns."""
    return bf16_value(bits) if brain else f16_value(bits)


def halves(get: Get) -> Get:
    """The 16-bit patterns of an operand: one or two per thread, a constant repeated."""

    def read(m: Machine, g: Group) -> Array:
        raw = get(m, g)
        if len(raw) != g.n:
            raw = np.repeat(raw, g.n)
        return np.ascontiguousarray(raw).view(np.uint16)

    return read


def _small_product(a: Array, b: Array, brain: bool) -> Array:
    product = a * b
    if not brain:
        return f16_bits(product)
    if (np.abs(product) < np.float32(2.0**-125)).any():  # float32 may have rounded a subnormal
        return bf16_from_f64(a.astype(_F64) * b)
    return bf16_bits(product)


def _fma(a: Array, b: Array, c: Array, brain: bool) -> Array:
    product = a.astype(_F64) * b
    if brain:
        return bf16_from_f64(fma_odd(product, np.ones(1), c.astype(_F64)))
    return f16_bits(product + c)  # exact in float64 wherever it matters: 11 + 22 bits and small exponents


def _extreme(name: str, propagate: bool, xorsign: bool) -> Callable[[Array, Array, bool], Array]:
    from fftgen.simulator.floating import extreme

    pick = extreme(name, propagate, xorsign)

    def choose(a: Array, b: Array, brain: bool) -> Array:
        value = pick(a, b)
        return bf16_bits(value) if brain else f16_bits(value)

    return choose


_APPROX: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "tanh": np.tanh,
}


def decode_half(d: Decoder, ins: Instruction) -> Op:
    """Arithmetic on .f16, .bf16, .f16x2 and .bf16x2."""
    mods = Modifiers(ins)
    kind = mods.type("f16", "bf16", "f16x2", "bf16x2")
    brain = kind.name.startswith("b")
    name = ins.parts[0]
    ftz = mods.flag("ftz")
    saturate = mods.flag("sat")
    relu = mods.flag("relu")
    mods.take("rn")
    if name in ("neg", "abs"):
        mods.done()
        flip: Callable[[Array], Array] = (lambda u: u ^ _SIGN) if name == "neg" else (lambda u: u & ~_SIGN)
        return _decode(d, ins, kind, [1], lambda parts: flip(_flush(parts[0], brain) if ftz else parts[0]))
    if name in ("min", "max"):
        propagate, xorsign = mods.flag("NaN"), mods.flag("xorsign")
        if xorsign:
            mods.need("abs")
        function: Callable[..., Array] = _extreme(name, propagate, xorsign)
        count = 2
    elif name in ("add", "sub", "mul"):
        if name == "mul":
            function = _small_product
        elif name == "add":
            function = _sum
        else:
            function = _difference
        count = 2
    elif name == "fma":
        function, count = _fma, 3
    elif name in _APPROX:
        mods.need("approx")
        approx = _APPROX[name]
        count = 1

        def function(a: Array, brain: bool) -> Array:
            value = approx(a.astype(_F64))
            return bf16_from_f64(value) if brain else f16_bits(value)

    else:
        d.refuse(f"type .{kind.name}")
    mods.done()
    if relu and name != "fma":
        d.refuse("modifier .relu")

    def compute(parts: list[Array]) -> Array:
        if ftz:
            parts = [_flush(p, brain) for p in parts]
        result = function(*[values(p, brain) for p in parts], brain)
        if ftz:
            result = _flush(result, brain)
        if saturate or relu:
            result = _clamp(result, brain, saturate)
        return result

    return _decode(d, ins, kind, [count], compute)


def _sum(a: Array, b: Array, brain: bool) -> Array:
    return bf16_bits(a + b) if brain else f16_bits(a + b)


def _difference(a: Array, b: Array, brain: bool) -> Array:
    return bf16_bits(a - b) if brain else f16_bits(a - b)


def _flush(bits: Array, brain: bool) -> Array:
    exponent = np.uint16(0x7F80 if brain else 0x7C00)
    return np.where(bits & exponent == 0, bits & _SIGN, bits)


def _clamp(bits: Array, brain: bool, saturate: bool) -> Array:
    """``.sat`` clamps to [0, 1] and turns a NaN to +0; ``.relu`` clamps below at 0 and keeps a NaN."""
    value = values(bits, brain)
    nan = np.isnan(value)
    result = np.where((bits & _SIGN != 0) & ~nan, np.uint16(0), bits)
    if saturate:
        one = np.uint16(0x3F80 if brain else 0x3C00)
        result = np.where(value > 1, one, result)
        return np.where(nan, np.uint16(0), result)
    return np.where(nan, H_NAN, result)


def _decode(
    d: Decoder, ins: Instruction, kind: Type, counts: list[int], compute: Callable[[list[Array]], Array]
) -> Op:
    (count,) = counts
    d.arity(count + 1)
    raw = TYPES[f"b{kind.bits}"]
    sources = [halves(d.get(o, raw)) for o in ins.operands[1:]]
    put = d.put(ins.operands[0], raw)
    dtype = raw.dtype

    def run(m: Machine, g: Group) -> None:
        result = compute([s(m, g) for s in sources])
        put(m, g, np.ascontiguousarray(result).view(dtype))

    return d.op(FP16, run)
