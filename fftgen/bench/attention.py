"""Attention of the same width, for the length from which a convolution is the faster mixer (design 5.1).

Operator against operator: a gated causal convolution of (B, H, L) beside causal attention of H / 64 heads.
The projections around both are the same matrix products and are left out of both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from fftgen.accuracy import Accuracy
from fftgen.bench.backend import Backend
from fftgen.bench.cases import Case
from fftgen.bench.contenders import Asked, Contender, Prepared, Unavailable
from fftgen.bench.inputs import Inputs
from fftgen.bench.reference import PEER_BOUND
from fftgen.errors import InternalError

HEAD = 64
LONGEST = 16384  # its time grows with the square: beyond, it says nothing new
ROWS = 16  # queries per head that are checked
QUERIES = 1024  # whose weights, float64, are in memory at a time while gradients are checked


def _heads(channels: int) -> tuple[int, int]:
    """(heads, width of a head) of a layer of so many channels."""
    if channels % HEAD == 0:
        return channels // HEAD, HEAD
    if channels < HEAD and channels % 8 == 0:
        return 1, channels
    raise Unavailable(f"{channels} channels are no whole number of heads")


def _prepare(case: Case, sets: Sequence[Inputs], backend: Backend) -> Prepared:
    if not (case.gated and case.problem.causal):
        raise Unavailable("compared with gated causal convolutions only")
    if case.length > LONGEST:
        raise Unavailable(f"measured up to length {LONGEST}")
    heads, width = _heads(case.channels)
    flash = backend.device.type == "cuda"

    def split(x: Tensor | None) -> Tensor:
        """(B, H, L) of the convolution as (B, heads, L, width), contiguous as a projection would leave it."""
        assert x is not None
        return x.detach().reshape(case.batch, heads, width, case.length).transpose(2, 3).contiguous()

    def call(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
        def run() -> Tensor:
            kernel = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if flash else contextlib.nullcontext()
            with kernel:
                return scaled_dot_product_attention(q, k, v, is_causal=True)

        return run

    # The inputs of a gated convolution are three signals: they serve as queries, keys and values.
    triples = [(split(x.in_gate), split(x.u), split(x.out_gate)) for x in sets]

    backward = case.direction == "backward"
    asked = tuple(
        Asked({n: x.requires_grad_() for n, x in zip("qkv", t, strict=True)}, split(s.v))
        for t, s in zip(triples if backward else (), sets, strict=backward)
    )

    def check(found: Mapping[str, Tensor]) -> Mapping[str, Accuracy]:
        if backward:
            return _judge_gradients(case, found, *triples[0], asked[0].cotangent)
        return {"y": _judge(case, found["y"], *triples[0])}

    note = f"{heads} heads of {width}" + (", flash backend" if flash else "")
    return Prepared(tuple(call(*t) for t in triples), asked=asked, check=check, note=note)


def _judge(case: Case, out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Accuracy:
    """Queries spread over the sequence, of every head and the first and last batch row, in float64."""
    if out.shape != q.shape:
        raise InternalError(f"attention returned {tuple(out.shape)}, expected {tuple(q.shape)}")
    steps = torch.linspace(0, case.length - 1, min(ROWS, case.length), device=q.device).long()
    errors, norms = [], []
    for row in sorted({0, case.batch - 1}):
        scores = q[row][:, steps].double() @ k[row].double().transpose(-1, -2) / math.sqrt(q.shape[-1])
        later = torch.arange(case.length, device=q.device)[None, :] > steps[:, None]
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        exact = weights @ v[row].double()
        errors.append(torch.linalg.vector_norm(out[row][:, steps].double() - exact, dim=(-1, -2)))
        norms.append(torch.linalg.vector_norm(exact, dim=(-1, -2)))
    return _verdict(case, torch.cat(errors), torch.cat(norms), out)


def _verdict(case: Case, distance: Tensor, norm: Tensor, out: Tensor) -> Accuracy:
    """Errors and norms of rows against a peer's bounds; all of ``out`` has to be finite."""
    bound = PEER_BOUND[case.problem.dtype]
    return Accuracy(
        float(torch.linalg.vector_norm(distance) / torch.linalg.vector_norm(norm)),
        float((distance / norm).max()),
        bound,
        2 * bound,
        bool(torch.isfinite(out).all()),
    )


def _judge_gradients(
    case: Case, found: Mapping[str, Tensor], q: Tensor, k: Tensor, v: Tensor, dy: Tensor
) -> dict[str, Accuracy]:
    """Gradients for the cotangent dy, in the first head of the first batch row and the last of the last."""
    ends = ((0, 0), (-1, -1))
    exact = [_exact_gradients(*(x.detach()[end].double() for x in (q, k, v, dy))) for end in ends]
    verdicts = {}
    for number, name in enumerate("qkv"):
        out = found[name]
        if out.shape != q.shape:
            raise InternalError(f"the gradient of {name} is {tuple(out.shape)}, expected {tuple(q.shape)}")
        errors = [
            torch.linalg.vector_norm(out[e].double() - x[number]) for e, x in zip(ends, exact, strict=True)
        ]
        norms = [torch.linalg.vector_norm(x[number]) for x in exact]
        verdicts[name] = _verdict(case, torch.stack(errors), torch.stack(norms), out)
    return verdicts


def _exact_gradients(q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v (L, width) of causal attention y = P v, P = softmax(q k' / sqrt(width)).

    With dP = dy v' and dS = P * (dP - the row sums of P * dP): dq = dS k and dk = dS' q, both over
    sqrt(width), dv = P' dy. Queries by the thousand.
    """
    length, width = q.shape
    times = torch.arange(length, device=q.device)
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    for first in range(0, length, QUERIES):
        part = slice(first, first + QUERIES)
        scores = q[part] @ k.T / math.sqrt(width)
        p = scores.masked_fill(times[None, :] > times[part, None], -math.inf).softmax(-1)
        dp = dy[part] @ v.T
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(width)
        dq[part] = ds @ k
        dk += ds.T @ q[part]
        dv += p.T @ dy[part]
    return dq, dk, dv


ATTENTION = Contender(
    "attention",
    "scaled_dot_product_attention, causal, of the same width",
    _prepare,
    filter_inside=False,
)
