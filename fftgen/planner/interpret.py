"""Run a plan in NumPy, stage by stage as the kernels do: ring 2 of the evidence (design 3).

*Exactly*, in float64, or in the arithmetic of the plan's kernels (arithmetic.py), where 2**-q is what scales
a row in fp16:

    z = pack(2**-q * in_gate * u)                      right-angle: real rows; batch-pair: two rows
    for s = 1..p:   z = T_s * (F_s z)                  F_s along digit s, scaled
    z = z * K                                          Monarch order, K scaled by 2**e, skip term inside
    for s = p..1:   z = F_s^H (conj(T_s) * z)
    y = out_gate * (residual * 2**(q-e)) * unpack(z)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fftgen.errors import InputError
from fftgen.planner.arithmetic import Complex, Exact, Real, arithmetic
from fftgen.planner.fold import folded
from fftgen.planner.order import monarch_permutation
from fftgen.planner.plan import Plan


def convolve(
    plan: Plan,
    u: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    in_gate: npt.ArrayLike | None = None,
    out_gate: npt.ArrayLike | None = None,
    skip: npt.ArrayLike | None = None,
    rounded: bool = True,
) -> npt.NDArray[np.float64]:
    """``y = out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))`` as the plan computes it.

    ``u`` and the gates ``(B, H, L)``, ``k (H, Lk)``, ``skip (H,)``; result ``(B, H, L)``, all float64.
    L and Lk may differ and may be shorter than the plan's length; both are padded with zeros.
    ``rounded`` chooses the kernels' arithmetic (arithmetic.py); signals are then rounded
    to the storage type on the way in. The filter is taken as it is. Raises InputError when shapes do
    not fit each other or the plan.
    """
    signal, taps = np.asarray(u, np.float64), np.asarray(k, np.float64)
    gate_in, gate_out, direct = _checked(plan, signal, taps, in_gate, out_gate, skip)
    machine = arithmetic(plan, rounded)
    x, down = machine.operands(signal, gate_in)
    filters, exponent = spectrum(plan, _with_skip(taps, direct), rounded=rounded)
    z = _forward(machine, _pack(plan, x))
    z = _inverse(machine, machine.twist(z, filters))
    y = _unpack(plan, z, *signal.shape[::2])
    residual = plan.residual if rounded else plan.unscaled
    y = y * (machine.wide(np.ldexp(residual, -exponent))[:, None] * down)
    if gate_out is not None:
        y = y * machine.wide(machine.store_real(gate_out))
    return machine.store_real(y).astype(np.float64)


def workspace_states(
    plan: Plan,
    u: npt.ArrayLike,
    k: npt.ArrayLike,
    *,
    in_gate: npt.ArrayLike | None = None,
    skip: npt.ArrayLike | None = None,
) -> dict[tuple[str, int], Complex]:
    """What the workspace holds after each kernel of a device-class plan, exactly: (items, H, N) complex.

    Keys are a kernel's (role, stage). Inputs as ``convolve``. For checking one launch by itself.
    """
    signal, taps = np.asarray(u, np.float64), np.asarray(k, np.float64)
    gate_in, _, direct = _checked(plan, signal, taps, in_gate, None, skip)
    machine = Exact(plan)
    filters, _ = spectrum(plan, _with_skip(taps, direct), rounded=False)
    inward: list[Complex] = []
    outward: list[Complex] = []
    packed = _pack(plan, signal if gate_in is None else signal * gate_in)
    _inverse(machine, _forward(machine, packed, inward) * filters, outward)
    outward.reverse()  # outward[s - 1]: after the inverse of stage s and the twiddle before it
    device = len(plan.device_stages)
    states = {("columns", s): inward[s - 1] for s in range(1, device + 1)}
    states["rows", 0] = outward[device]
    if plan.engine == "mma":  # there the inverse columns apply the twiddle before their stage
        first = plan.stages[0]
        states["rows", 0] = outward[1].reshape(-1, first.radix, first.rest) * machine.twiddle(1)
    states |= {("columns_inverse", s): outward[s - 1] for s in range(1, device + 1)}
    return {key: z.reshape(packed.shape) for key, z in states.items()}


def spectrum(plan: Plan, k: npt.ArrayLike, *, rounded: bool = True) -> tuple[Complex, npt.NDArray[np.int64]]:
    """The spectrum of filters ``k (H, Lk)`` as the kernels take it: ``(H, N)`` complex and ``e (H,)``.

    FFT of the (folded, weighted) filter padded to N, in Monarch order, times ``2**e``: the power of two
    that brings a channel's largest modulus into [1/2, 1). A channel of zeros, or with a value that is not
    finite, has e = 0. With ``rounded`` the numbers are those that the storage type holds.
    """
    taps = np.asarray(k, np.float64)
    n = plan.transform
    weighted: Complex = folded(taps, plan.fold, n) if plan.fold else taps.astype(np.complex128)
    if plan.real_input:
        weighted = weighted * np.exp(0.5j * np.pi / n * np.arange(weighted.shape[-1]))
    natural = np.fft.fft(weighted, n, axis=-1)
    largest = np.abs(natural).max(axis=-1)
    _, power = np.frexp(np.where(np.isfinite(largest), largest, 0.0))
    exponent = -power.astype(np.int64)
    scaled = np.empty_like(natural)
    for part, source in ((scaled.real, natural.real), (scaled.imag, natural.imag)):
        part[...] = np.ldexp(source, exponent[:, None])
    ordered: Complex = scaled[:, monarch_permutation(plan.factors)]
    return arithmetic(plan, rounded).spectrum(ordered), exponent


def _checked(
    plan: Plan,
    u: Real,
    k: Real,
    in_gate: npt.ArrayLike | None,
    out_gate: npt.ArrayLike | None,
    skip: npt.ArrayLike | None,
) -> tuple[Real | None, Real | None, Real | None]:
    """The optional inputs as arrays, every shape checked."""
    length = plan.problem.length
    if u.ndim != 3 or 0 in u.shape or u.shape[-1] > length:
        raise InputError(f"u has shape {u.shape}: the plan takes (B, H, L) with 1 <= L <= {length}")
    if k.ndim != 2 or k.shape[0] != u.shape[1] or not 1 <= k.shape[1] <= length:
        raise InputError(f"k has shape {k.shape}: the plan takes ({u.shape[1]}, Lk) with 1 <= Lk <= {length}")

    def optional(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...]) -> Real | None:
        if value is None:
            return None
        array = np.asarray(value, np.float64)
        if array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}: it must be {shape} to go with u {u.shape}")
        return array

    gates = optional("in_gate", in_gate, u.shape), optional("out_gate", out_gate, u.shape)
    return (*gates, optional("skip", skip, u.shape[1:2]))


def _with_skip(taps: Real, skip: Real | None) -> Real:
    """conv(u, k) + D u is conv(u, k + D delta)."""
    if skip is None:
        return taps
    joined: Real = taps.copy()
    joined[:, 0] += skip
    return joined


def _pack(plan: Plan, x: Real) -> Real | Complex:
    """Rows (B, H, L) as transform inputs (items, H, N): real ones, or pairs of rows as complex ones."""
    batch, heads, length = x.shape
    items = -(-batch // plan.rows_per_item)
    padded = np.zeros((items * plan.rows_per_item, heads, plan.transform), x.dtype)
    padded[:batch, :, :length] = x
    if plan.real_input:
        return padded
    imaginary = np.complex64(1j) if x.dtype == np.float32 else 1j
    pairs: Complex = padded[0::2] + imaginary * padded[1::2]
    return pairs


def _forward(machine: Exact, z: Real | Complex, trace: list[Complex] | None = None) -> Complex:
    """All forward stages; the last result stays in the accumulators. ``trace`` collects every result."""
    shape = z.shape
    order = machine.plan.order
    for number in range(1, order + 1):
        product = machine.forward(number, z)
        if number < order:
            product = machine.twist(product, machine.twiddle(number))
        z = product
        if trace is not None:
            trace.append(product)
    return product.reshape(shape)


def _inverse(machine: Exact, z: Complex, trace: list[Complex] | None = None) -> Complex:
    """All inverse stages, last digit first; the last result stays in the accumulators.

    ``trace`` collects every result.
    """
    shape = z.shape
    stages = machine.plan.stages
    for number in range(len(stages), 0, -1):
        z = machine.backward(number, z)
        if number > 1:  # the twiddle that the forward transform put after the stage before
            before = stages[number - 2]
            z = z.reshape(-1, before.radix, before.rest)
            z = machine.twist(z, np.conj(machine.twiddle(number - 1)))
        if trace is not None:
            trace.append(z)
    return z.reshape(shape)


def _unpack(plan: Plan, z: Complex, batch: int, length: int) -> Real:
    """Rows (B, H, L) out of transform outputs (items, H, N)."""
    if plan.real_input:
        return z.real[..., :length]
    pairs = np.stack([z.real, z.imag], axis=1)  # (items, 2, H, N)
    return pairs.reshape(-1, *z.shape[1:])[:batch, :, :length]
