"""Where kernels come from: the compiler, just in time (an artifact is another: bundle.py)."""

from __future__ import annotations

from typing import Protocol

from fftgen import shortcut
from fftgen.bundle import build_twin, trains
from fftgen.cache import Cache
from fftgen.pipeline import Built, build, build_gradient, build_plan
from fftgen.planner import gradient_sections, sections
from fftgen.planner.gradient import gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.targets import target_for

Plans = tuple[Plan, ...]


class Provider(Protocol):
    """Where kernels come from: the compiler, or an artifact."""

    def has(self, problem: Problem) -> bool:
        """Whether kernels for a problem can be had."""

    def built(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built:
        """The kernels for a problem on a device of this compute capability; ``gpu``: its name, if known."""

    def planned(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Plan | None:
        """Their plan, where they can be had."""

    def sections(
        self, problem: Problem, capability: tuple[int, int], gpu: str = "", back: bool = False
    ) -> Plans:
        """Plans of a problem in sections that can be had; ``back``: with filters that act backwards."""

    def sectioned(self, plan: Plan) -> Built:
        """The kernels of one of them."""

    def trained_sections(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Plans:
        """Those of ``sections`` of a causal problem the kernels of whose gradients can be had."""

    def backward_sectioned(self, plan: Plan) -> Built:
        """The kernels of all gradients of one of them."""

    def gradient(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        """The kernels of its filter's gradient, where there are any."""

    def twin(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        """Its kernels with two outputs, where there are any."""

    def backward(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built | None:
        """The kernels of all its gradients by one pass, where there are any."""


class JustInTime:
    """Plans and compiles for a device, through the cache."""

    def has(self, problem: Problem) -> bool:
        return True

    def built(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built:
        return build(problem, target_for(capability), gpu=gpu)  # plans are tuned for GPUs of a name

    def planned(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Plan | None:
        return shortcut.plan(Cache.default(), problem, target_for(capability), gpu=gpu)

    def sections(
        self, problem: Problem, capability: tuple[int, int], gpu: str = "", back: bool = False
    ) -> Plans:
        return sections.of(problem, lambda p: self.planned(p, capability, gpu), back)

    def sectioned(self, plan: Plan) -> Built:
        return build_plan(plan)

    def trained_sections(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Plans:
        return gradient_sections.trained(self.sections(problem, capability, gpu))

    def backward_sectioned(self, plan: Plan) -> Built:
        return build_gradient(gradient_sections.in_sections(plan))

    def gradient(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        chip = target_for(capability)
        return build_gradient(gradient(problem, chip)) if trains(problem, chip) else None

    def twin(self, problem: Problem, capability: tuple[int, int]) -> Built | None:
        return build_twin(problem, target_for(capability))

    def backward(self, problem: Problem, capability: tuple[int, int], gpu: str = "") -> Built | None:
        found = shortcut.backward(Cache.default(), problem, target_for(capability), gpu)
        return None if found is None else build_gradient(found)
