"""Engines by name: which types of signals each takes, and in what format it computes."""

from __future__ import annotations

from fftgen.dtypes import DTYPES
from fftgen.errors import InputError
from fftgen.planner import mma_rules
from fftgen.planner.plan import BF16_FP32, FP16_FP32, FP32, SIMT, Plan
from fftgen.targets import Target

ENGINES = ("mma", "wmma")  # of matrix instructions: signals of 16 bits
AND_FORMAT = ":"  # between an engine and a compute format that is not its first


def formats(engine: str, dtype: str) -> tuple[str, ...]:
    """The compute formats of an engine for a storage type, the one that it takes unasked first; none where
    it does not take that type."""
    if engine == SIMT or dtype == FP32:
        return (FP32,) if engine == SIMT and dtype == FP32 else ()
    if engine == "wmma":
        return (BF16_FP32 if dtype == "bf16" else FP16_FP32,)
    return tuple(f for f in mma_rules.FORMATS if mma_rules.serves(f, dtype) is None)


def parse_engine(text: str) -> tuple[str, str | None]:
    """ "mma", "wmma" or "simt", and the compute format after a colon ("mma:bf16-fp32"), if there is one.

    Raises InputError for any other text.
    """
    engine, colon, compute_format = str(text).partition(AND_FORMAT)
    known = {name: {f for d in DTYPES for f in formats(name, d)} for name in (*ENGINES, SIMT)}
    if engine not in known or (colon and compute_format not in known[engine]):
        named = (f"{name}{AND_FORMAT}{f}" for name, found in known.items() for f in sorted(found))
        raise InputError(f"engine {text!r} is not known: choose from {', '.join((*known, *named))}")
    return engine, compute_format or None


def named_engine(found: Plan) -> str:
    """What ``parse_engine`` takes for the engine of a plan: with its compute format, unless taken unasked."""
    unasked = formats(found.engine, found.problem.dtype)[0] == found.compute_format
    return found.engine if unasked else f"{found.engine}{AND_FORMAT}{found.compute_format}"


def supports_engine(engine: str, target: Target) -> str | None:
    """Why no plan of an engine can be for a target; None where some can. Raises InputError for no engine."""
    return mma_rules.supports(target) if parse_engine(engine)[0] == "mma" else None


def takes(engine: str, dtype: str) -> str | None:
    """Why an engine computes no signals of a type; None where it does."""
    name = parse_engine(engine)[0]
    if formats(name, dtype):
        return None
    others = " and ".join(f"{e!r}" for e in (*ENGINES, SIMT) if formats(e, dtype))
    return f"the engine {name!r} takes no {dtype} signals ({others} would)"
