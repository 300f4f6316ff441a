"""Which kernels serve a call: built and loaded at the first call on a device."""

from __future__ import annotations

from functools import cached_property, partial

import torch
from torch import Tensor

from fftgen.bounded import Bounded
from fftgen.bundle import padded
from fftgen.errors import ToolchainError
from fftgen.execute import chip_of
from fftgen.loaded import Loaded, LoadedGradient, cut
from fftgen.on_demand import OnDemand
from fftgen.planner import gradient_sections, sections
from fftgen.planner.gradient import backward as gradient_backward
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_sections import Prepared
from fftgen.planner.plan import Plan
from fftgen.planner.sections import Shorter
from fftgen.planner.windows import WORTH, Windows, possible, windows
from fftgen.problem import Problem
from fftgen.providers import Provider
from fftgen.targets import target_for

BATCHES = (1, 64)  # for which a filter must be short enough for windows, to be kept as it is, or sections pay


class Serving:
    """The kernels of a convolution: which of them take a call, by its shape, and each on its device."""

    def __init__(self, problem: Problem, provider: Provider) -> None:
        self.problem = problem
        self._provider = provider
        trained = partial(self._captured, train=True)
        self._loaded: OnDemand[Problem, Loaded] = OnDemand(self._load, self._captured)
        self._gradients: OnDemand[Problem, LoadedGradient | None] = OnDemand(self._load_gradient, trained)
        self._backwards: OnDemand[Problem, LoadedGradient | None] = OnDemand(self._load_backward, trained)
        self._twins: OnDemand[Problem, Loaded | None] = OnDemand(self._load_twin, trained)
        self._sectioned: OnDemand[Plan, Loaded] = OnDemand(self._load_sections, self._captured)
        self._backwards_sectioned: OnDemand[Plan, LoadedGradient] = OnDemand(
            self._load_backward_sections, self._captured
        )
        self._sections: Bounded[tuple[object, ...], tuple[Shorter | None]] = Bounded()
        self._backward_sections: Bounded[tuple[object, ...], tuple[Plan | None]] = Bounded()
        self._windows: Bounded[tuple[object, ...], tuple[Windows | None]] = Bounded()

    def served(self, length: int, taps: int) -> Problem:
        """The problem that a call becomes: padded circular calls are causal ones of half the length.

        An artifact without the half serves them as they are: the result is the same.
        """
        half = self._half
        return self.problem if half is None or length > half.length or taps > half.length else half

    @cached_property
    def _half(self) -> Problem | None:
        """The problem of padded calls, if there are kernels for it."""
        half = padded(self.problem)
        return half if half is not None and self._provider.has(half) else None

    def meeting(
        self, u: Tensor, k: Tensor | None, k_rev: Tensor | None
    ) -> tuple[Problem, Tensor | None, Tensor | None]:
        """The problem that serves a call, and its filters without the taps that meet nothing.

        Causal taps beyond the signal do: they ask for no longer transform.
        """
        steps = u.shape[-1]
        if self.problem.causal:
            k, k_rev = cut(k, steps), cut(k_rev, steps)
        taps = max(0 if k is None else k.shape[-1], 0 if k_rev is None else k_rev.shape[-1])
        return self.served(steps, taps), k, k_rev

    def serving(
        self,
        u: Tensor,
        problem: Problem,
        k: Tensor | None,
        k_rev: Tensor | None,
        keeping: bool = False,
        gated: bool = False,
    ) -> tuple[Loaded, Windows | None]:
        """The kernels that had better take a call on a GPU, of what ``meeting`` says, and its windows.

        ``keeping``: as in ``run``; ``gated``: with both gates.
        """
        batch, channels, _ = u.shape
        how = {"back": k_rev is not None, "gated": gated}
        cut = self.sections_of(u.device, problem, batch, channels, keeping, **how)
        found = self.windows(u, problem, k, k_rev, cut.share if cut else WORTH)
        if found is not None:
            return self.on(u.device, self.of_windows(found)), found
        loaded = self.in_sections(u.device, cut.plan) if cut else None
        return loaded or self.on(u.device, problem), None

    def sections_of(
        self,
        device: torch.device,
        problem: Problem,
        batch: int,
        channels: int,
        keeping: bool = False,
        prepared: bool = False,
        back: bool = False,
        gated: bool = False,
    ) -> Shorter | None:
        """The sections that so many rows had better take (planner/sections.py); None: none, or they cannot
        be had.

        ``prepared``: their filters' spectra are there; ``back``: there are filters that act backwards;
        ``gated``: both gates are.
        """
        if not sections.possible(problem):
            return None
        reads = self.backward_sections(device, problem, batch, channels) if keeping and not back else None
        # Of a causal problem one pass makes all gradients, which reads spectra of the whole, or of sections.
        apart: tuple[int, ...] = ()
        if keeping and problem.causal:
            apart = (reads.sections, reads.transform) if reads else (1, 0)
        key = (device, problem, batch, channels, apart, prepared, back, gated)
        kept = self._sections.get(key)
        if kept is None:
            facts = _facts(device)
            plan, shortest = self._provider.planned(problem, *facts), None
            if plan is not None:
                others = self._provider.sections(problem, *facts, back)
                chip = chip_of(plan.target, device)
                read = (reads or plan) if apart else None
                shortest = sections.shorter(plan, others, batch, channels, read, prepared, gated, chip)
            kept = self._sections.keep(key, (shortest,))
        (found,) = kept
        return found if found and self._sectioned.may_be_had(device, found.plan) else None

    def backward_sections(
        self,
        device: torch.device,
        problem: Problem,
        batch: int,
        channels: int,
        gated: bool = True,
        prepared: Prepared | None = None,
        alone: bool = False,
    ) -> Plan | None:
        """The plan in sections whose gradients so many rows had better take; None: none, or its kernels
        cannot be had, those that make the filters' spectra among them where they are not ``prepared``.

        ``gated``, ``prepared``, ``alone``: as planner/gradient_sections.py has them.
        """
        if not problem.causal or not sections.possible(problem):
            return None
        key = (device, problem, batch, channels, gated, prepared, alone)
        kept = self._backward_sections.get(key)
        if kept is None:
            facts = _facts(device)
            plan, found = self._provider.planned(problem, *facts), None
            others = self._provider.trained_sections(problem, *facts)
            whole = None
            if plan is not None and others:
                whole = (gradient if alone else gradient_backward)(problem, target_for(facts[0]))
            if plan is not None and whole is not None:
                how = gated, prepared, alone
                found = gradient_sections.shorter(whole, plan, others, batch, channels, *how)
            kept = self._backward_sections.keep(key, (found,))
        (found,) = kept
        if found is None or not self._backwards_sectioned.may_be_had(device, found):
            return None
        there = alone or prepared == Prepared(found.sections, found.transform)
        return found if there or self._sectioned.may_be_had(device, found) else None

    def backward_in_sections(self, device: torch.device, plan: Plan) -> LoadedGradient | None:
        """The kernels of all gradients of a plan in sections on a GPU, built and loaded at the first call;
        None: they cannot be had, and those of the whole serve."""
        return self._backwards_sectioned.if_had(device, plan)

    def on_sections(self, device: torch.device, plan: Plan) -> Loaded:
        """The kernels of a plan in sections on a GPU, built and loaded at the first call."""
        return self._sectioned.on(device, plan)

    def in_sections(self, device: torch.device, plan: Plan) -> Loaded | None:
        """The same; None: they cannot be had, and those of the whole serve."""
        return self._sectioned.if_had(device, plan)

    def _preparing(self, device: torch.device, problem: Problem, channels: int, back: bool) -> Loaded | None:
        """The kernels of sections, where calls of any batch take less by them: their spectra are prepared."""
        if not sections.possible(problem):
            return None
        facts = _facts(device)
        plan = self._provider.planned(problem, *facts)
        if plan is None:
            return None
        others = self._provider.sections(problem, *facts, back)
        found = sections.of_any_batch(plan, others, channels, BATCHES, chip_of(plan.target, device))
        return None if found is None else self.in_sections(device, found)

    def _warm_sections(self, device: torch.device, problem: Problem, train: bool) -> None:
        """Compile and load the kernels of sections that many rows of a problem take, if any do."""
        if not sections.possible(problem):
            return
        facts = _facts(device)
        plan = self._provider.planned(problem, *facts)
        others = self._provider.sections(problem, *facts)
        best = {sections.of_many_rows(plan, others, gated) for gated in (False, True)} if plan else {}
        for found in filter(None, best):
            self.in_sections(device, found)
        trained = self._provider.trained_sections(problem, *facts) if train and problem.causal else ()
        whole = gradient_backward(problem, target_for(facts[0])) if trained else None
        back = gradient_sections.of_many_rows(whole, trained) if whole else None
        if back is not None:
            self.backward_in_sections(device, back)
            self.in_sections(device, back)  # which make the spectra of what did not go in the same sections

    def of_windows(self, found: Windows) -> Problem:
        """The problem whose kernels take windows."""
        return Problem("causal", found.length, self.problem.dtype)

    def windows(
        self, u: Tensor, problem: Problem, k: Tensor | None, k_rev: Tensor | None, worth: float = WORTH
    ) -> Windows | None:
        """The windows that a call on a GPU had better take (planner/windows.py), of what ``meeting`` says."""
        taps = [0 if f is None else f.shape[-1] for f in (k, k_rev)]
        batch, channels, steps = u.shape
        return self.windows_of(u.device, problem, (batch, channels, steps), *taps, worth=worth)

    def windows_of(
        self,
        device: torch.device,
        problem: Problem,
        shape: tuple[int, int, int],
        ahead: int,
        back: int,
        *,
        worth: float = WORTH,
        least: int = 0,
    ) -> Windows | None:
        """The same for signals of a shape (B, H, L) and so many taps.

        Their kernels are loaded; where they cannot be, those that are there for the whole serve.
        """
        if not problem.causal or not possible(shape[-1], ahead, back):
            return None
        key = (device, problem, shape, ahead, back, worth, least)
        kept = self._windows.get(key)
        if kept is None:
            facts = _facts(device)

            def planned(p: Problem) -> Plan | None:
                return self._provider.planned(p, *facts)

            plan, found = planned(problem), None
            if plan is not None:
                found = windows(plan, shape, ahead, back, planned, worth, least)
            kept = self._windows.keep(key, (found,))
        (found,) = kept
        if found is None:
            return None
        return found if self._loaded.if_had(device, self.of_windows(found)) is not None else None

    def on(self, device: torch.device, problem: Problem) -> Loaded:
        """The kernels of a problem on a GPU, built and loaded at the first call."""
        return self._loaded.on(device, problem)

    def gradient_on(self, device: torch.device, problem: Problem) -> LoadedGradient | None:
        """The kernels of the filter's gradient on a GPU, built and loaded at the first call; None: none."""
        return self._gradients.on(device, problem)

    def backward_on(self, device: torch.device, problem: Problem) -> LoadedGradient | None:
        """The kernels of all gradients on a GPU, built and loaded at the first call; None: none."""
        return self._backwards.on(device, problem)

    def twin_on(self, device: torch.device, problem: Problem) -> Loaded | None:
        """The kernels with two outputs on a GPU, built and loaded at the first call; None: none."""
        return self._twins.on(device, problem)

    def windows_gradient(self, device: torch.device, found: Windows) -> LoadedGradient | None:
        """Those of the filter's gradient for windows; None: none, or they cannot be had."""
        return self._gradients.if_had(device, self.of_windows(found))

    def windows_twin(self, device: torch.device, found: Windows) -> Loaded | None:
        """Those with two outputs for windows; None: none, or they cannot be had."""
        return self._twins.if_had(device, self.of_windows(found))

    def _of_digest(self, digest: str, device: torch.device) -> Loaded | None:
        """The kernels of the plan with a digest; what is loaded is looked through first."""
        for plan, _ in tuple(self._sectioned):
            if plan.digest == digest:
                return self.on_sections(device, plan)
        own = dict.fromkeys((self.problem, self.served(1, 1)))
        for problem in sorted(own, key=lambda p: (p, device) not in self._loaded):
            loaded = self.on(device, problem)
            if loaded.executable.plan.digest == digest:
                return loaded
        for problem in filter(sections.possible, own):
            for back in (False, True):
                for plan in self._provider.sections(problem, *_facts(device), back):
                    if plan.digest == digest:
                        return self.on_sections(device, plan)
        return None

    def _load(self, problem: Problem, device: torch.device) -> Loaded:
        return Loaded(self._provider.built(problem, *_facts(device)), device)

    def _load_gradient(self, problem: Problem, device: torch.device) -> LoadedGradient | None:
        built = self._provider.gradient(problem, _facts(device)[0])
        return None if built is None else LoadedGradient(built, device)

    def _load_backward(self, problem: Problem, device: torch.device) -> LoadedGradient | None:
        built = self._provider.backward(problem, *_facts(device))  # layouts are tuned for GPUs of a name
        return None if built is None else LoadedGradient(built, device)

    def _load_twin(self, problem: Problem, device: torch.device) -> Loaded | None:
        built = self._provider.twin(problem, _facts(device)[0])
        return None if built is None else Loaded(built, device)

    def _load_sections(self, plan: Plan, device: torch.device) -> Loaded:
        return Loaded(self._provider.sectioned(plan), device)

    def _load_backward_sections(self, plan: Plan, device: torch.device) -> LoadedGradient:
        return LoadedGradient(self._provider.backward_sectioned(plan), device)

    def _captured(self, own: Problem | Plan, device: torch.device, train: bool = False) -> ToolchainError:
        """Kernels are missing while a graph is captured: which, and the call that loads them."""
        parts = f"{own.sections} sections" if isinstance(own, Plan) else f"windows of {own.length} steps"
        if isinstance(own, Plan) or own not in (self.problem, self._half):
            return ToolchainError(
                f"{self!r} has no kernels of {parts} loaded on {device} and a CUDA "
                "graph is being captured: make the same call once before the capture"
            )
        half = own != self.problem
        options = [f"length={own.length}"] * half + ["train=True"] * train
        which = f" for sequences and filters of at most {own.length}" if half else ""
        return ToolchainError(
            f"{self!r} is not loaded on {device}{which} and a CUDA graph is being captured: call "
            f"conv.warmup({', '.join(options)}) before the capture"
        )


def _facts(device: torch.device) -> tuple[tuple[int, int], str]:
    """What plans are chosen by: a GPU's compute capability and its name."""
    return torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
