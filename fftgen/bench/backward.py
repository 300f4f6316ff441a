"""The backward pass of a contender alone: its forward pass is done, and stays recorded while it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fftgen.bench.contenders import Asked, Prepared, Unavailable
from fftgen.bench.inputs import Inputs


@dataclass
class Pass:
    """A call of one contender on one set of inputs, and the gradients of its arguments.

    Calling it is the backward pass alone, of the forward pass that ``open`` recorded and ``close`` forgets:
    gradients in the order of ``asked.arguments``, each new; None where the contender has none. ``step`` is
    both passes together, as in training.
    """

    forward: Callable[[], Tensor]
    asked: Asked
    _y: Tensor | None = field(default=None, init=False)

    def open(self) -> None:
        """Record a forward pass. Raises Unavailable when nothing is recorded."""
        self._y = self._recorded()

    def close(self) -> None:
        self._y = None

    def __call__(self) -> tuple[Tensor | None, ...]:
        assert self._y is not None
        return self._gradients(self._y, retain=True)

    def step(self) -> tuple[Tensor | None, ...]:
        """Forward and backward pass: y and the gradients."""
        y = self._recorded()
        return (y, *self._gradients(y, retain=False))

    def _recorded(self) -> Tensor:
        with torch.enable_grad():
            y = self.forward()
        if not y.requires_grad:
            raise Unavailable("autograd finds nothing recorded in its result: it has no backward pass")
        return y

    def _gradients(self, y: Tensor, *, retain: bool) -> tuple[Tensor | None, ...]:
        wanted = tuple(self.asked.arguments.values())
        return torch.autograd.grad(y, wanted, self.asked.cotangent, retain_graph=retain, allow_unused=True)


def passes(prepared: Prepared, sets: Sequence[Inputs]) -> tuple[Pass, ...]:
    """A pass for every set of inputs, which are leaves (``Inputs.leaves``), with the cotangent."""
    asked = prepared.asked or tuple(_asked(x) for x in sets)
    return tuple(Pass(call, a) for call, a in zip(prepared.calls, asked, strict=True))


def _asked(x: Inputs) -> Asked:
    assert x.v is not None
    return Asked(x.arguments, x.v)


@contextmanager
def standing(found: Sequence[Pass]) -> Iterator[None]:
    """Recorded forward passes of all of them, until the end."""
    try:
        for one in found:
            one.open()
        yield
    finally:
        for one in found:
            one.close()


def gradients(one: Pass, *, compiled: bool) -> Mapping[str, Tensor]:
    """The gradients of a pass that stands, by argument.

    Raises Unavailable where the contender has none of an argument, or where ``compiled`` code gave up what
    it had recorded, so that its backward pass cannot be repeated (torch.compile before it compiled backward
    graphs by whether they are retained).
    """
    try:
        found = dict(zip(one.asked.arguments, one(), strict=True))
    except RuntimeError as error:
        if compiled and "retain_graph" in str(error):
            said = str(error).strip().splitlines()[0]
            raise Unavailable(
                f"its backward pass cannot be repeated, and so not timed alone: {said}"
            ) from None
        raise
    there = {name: x for name, x in found.items() if x is not None}
    missing = [name for name in found if name not in there]
    if missing:
        raise Unavailable(f"it has no gradient of {', '.join(missing)}")
    return there
