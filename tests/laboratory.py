"""Mutants of a module's PTX, each run as whole calls: which pass for right, and which nobody ran."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from mutations import Mutation, running

from fftgen import emulate
from fftgen.errors import InternalError
from fftgen.pipeline import Built
from fftgen.simulator import Module, Report, SimulationError


def by_place(mutations: Iterable[Mutation]) -> dict[Any, list[Mutation]]:
    """The copies that the compiler made of each place in the source."""
    copies: dict[Any, list[Mutation]] = defaultdict(list)
    for mutation in mutations:
        copies[mutation.entry, mutation.places].append(mutation)
    return copies


class Laboratory(ABC):
    """A module's kernels, and calls that every mutant of them has to fail.

    ``stand_ins``: the compiler makes copies of their own of work that stands in for what lies beyond the end,
    and nobody uses its results.
    """

    stand_ins = False

    def __init__(self, module: Built, ptx: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.ptx = module, ptx
        self.patch = monkeypatch
        self.reached: set[int] = set()

    @abstractmethod
    def run(self, ptx: str) -> None:
        """All calls on this PTX. Raises what the simulator finds, AssertionError for a wrong result."""

    def look(self) -> None:
        """Note the PTX lines that some thread executes. As it is, the kernel is right."""
        made = Report.of

        def noted(module: Any, entry: Any, ops: Any, counts: Any, *rest: int) -> Report:
            self.reached.update(
                op.instruction.ptx_line for op, issued in zip(ops, counts.issues, strict=True) if issued
            )
            return made(module, entry, ops, counts, *rest)

        with self.patch.context() as patch:
            patch.setattr(Report, "of", staticmethod(noted))
            self.run(self.ptx)

    def survives(self, mutation: Mutation) -> bool:
        """Whether a mutant passes for right."""
        with running(mutation.module(self.right)):
            try:
                self.run(self.ptx)
            except (SimulationError, InternalError, AssertionError):
                return False
        return True

    @property
    def right(self) -> Module:
        """The module as it is."""
        return emulate._parsed(self.ptx, self.module.source.text)

    def survivors(self, mutations: Iterable[Mutation]) -> list[Mutation]:
        """Mutants that pass for right.

        The compiler unrolls loops and so makes copies of an instruction that a given plan never comes to; of
        those, another copy has to be in use (``unreached``).
        """
        return [m for m in mutations if m.line in self.reached and self.survives(m)]

    def missed(self, mutations: Iterable[Mutation], all_of_them: Iterable[Mutation]) -> list[str]:
        """Survivors. With stand-ins those of which no other copy of the same place is noticed either."""
        found = self.survivors(mutations)
        if self.stand_ins:
            copies = by_place(all_of_them)
            found = [
                m
                for m in found
                if not any(
                    c.line != m.line and c.line in self.reached and not self.survives(c)
                    for c in copies[m.entry, m.places]
                )
            ]
        return [str(m) for m in found]

    def unreached(self, mutations: Iterable[Mutation]) -> list[str]:
        """Places in the source of which no call reaches any copy.

        Loops that the compiler adds for what is left of an unrolled one may not say where their code was
        inlined: they are copies of all that say more.
        """
        groups = by_place(mutations)
        reached = [key for key, copies in groups.items() if self.reached & {m.line for m in copies}]
        return [
            str(copies[0])
            for (entry, places), copies in groups.items()
            if not any(e == entry and p[: len(places)] == places for e, p in reached)
        ]

    def source_line(self, place: tuple[str, int], step: int = 0) -> str:
        """The text of a source line, or of that ``step`` lines further."""
        file, line = place
        headers = {path.rpartition("/")[2]: text for path, text in self.module.source.headers.items()}
        return headers.get(file, self.module.source.text).splitlines()[line - 1 + step].strip()
