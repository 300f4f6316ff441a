"""Whole calls on a GPU, their arguments checked: what the operators of op.py call."""

from __future__ import annotations

import torch
from torch import Tensor

from fftgen.check import check_spectrum
from fftgen.errors import InputError
from fftgen.kept import kept_for
from fftgen.loaded import Loaded, Route
from fftgen.planner.gradient import read_backwards
from fftgen.problem import Problem
from fftgen.serving import Serving
from fftgen.spectra import Spectrum
from fftgen.storage import spectrum_dtype


class Calls(Serving):
    """A convolution's calls: with filters, with spectra that are prepared, with two results."""

    def run(
        self,
        u: Tensor,
        k: Tensor | None,
        k_rev: Tensor | None,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        skip: Tensor | None,
        *,
        keeping: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """A whole call on a GPU, its arguments checked: spectrum, then kernels, on the current stream.

        The second result is the spectrum, if kernels of a backward pass read it, too; ``keeping``: one will.
        """
        if u.numel() == 0:
            return torch.empty_like(u), None
        problem, k, k_rev = self.meeting(u, k, k_rev)
        gated = in_gate is not None and out_gate is not None
        loaded, found = self.serving(u, problem, k, k_rev, keeping, gated)
        if found is not None:
            return loaded.windowed(found, u, k, k_rev, in_gate, (out_gate,), skip)[0], None
        y, spectrum = loaded.convolve(u, k, k_rev, in_gate, out_gate, skip)
        return y, spectrum if read_backwards(loaded.executable.plan) else None

    def route(
        self, u: Tensor, k: Tensor | None, k_rev: Tensor | None, handle: str, gated: bool = False
    ) -> Route:
        """The route of calls like one, which is arranged, of this convolution under a handle.

        ``gated``: with both gates.
        """
        if not u.is_cuda or u.numel() == 0:
            return Route(handle)
        problem, ahead, back = self.meeting(u, k, k_rev)
        taps = 0 if ahead is k and back is k_rev else u.shape[-1]
        loaded, found = self.serving(u, problem, ahead, back, gated=gated)
        return Route(handle, loaded, taps, found)

    def run_prepared(
        self,
        u: Tensor,
        planes: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
        skip: Tensor | None,
        digest: str,
    ) -> Tensor:
        """A whole call on a GPU with a spectrum that is there. Raises InputError where it is none."""
        if u.numel() == 0:
            return torch.empty_like(u)
        loaded = self.loaded_for(digest, u)
        plan = loaded.executable.plan
        check_spectrum(planes, scale, u, plan.transform, spectrum_dtype(plan), plan.distances)
        return loaded.apply(u, planes, scale, in_gate, out_gate, skip)

    def run_both(
        self,
        u: Tensor,
        k: Tensor | None,
        k_rev: Tensor | None,
        in_gate: Tensor | None,
        gates: tuple[Tensor, Tensor],
        skip: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``run`` with each of two output gates: by one transform where there are kernels for it."""
        if u.numel() == 0:
            return torch.empty_like(u), torch.empty_like(u)
        problem, k, k_rev = self.meeting(u, k, k_rev)
        found = self.windows(u, problem, k, k_rev)
        if found is not None:
            loaded, twin = self.on(u.device, self.of_windows(found)), self.windows_twin(u.device, found)
            first, second = loaded.windowed(found, u, k, k_rev, in_gate, gates, skip, twin)
            return first, second
        loaded, twin = self.on(u.device, problem), self.twin_on(u.device, problem)
        made = loaded.spectrum(k, k_rev, skip)
        if twin is not None:
            return twin.both(u, made.planes, made.scale, in_gate, gates)
        first, second = (loaded.apply(u, made.planes, made.scale, in_gate, gate) for gate in gates)
        return first, second

    def check_prepared(self, k: Spectrum, u: Tensor) -> None:
        """Whether a spectrum is one for this convolution and these signals."""
        if k.planes.device != u.device:
            raise InputError(f"the spectrum is on {k.planes.device}, u on {u.device}: prepare it there")
        if k.channels != u.shape[1]:
            raise InputError(
                f"the spectrum has {k.channels} channels, u has {u.shape[1]}: prepare as many filters"
            )
        if k.filter_length > self.problem.length:
            raise InputError(
                f"the spectrum holds a filter of {k.filter_length} taps, this convolution takes at most "
                f"{self.problem.length}: prepare it with this convolution"
            )

    def loaded_for(self, digest: str, u: Tensor) -> Loaded:
        """The kernels that a prepared spectrum belongs to. Raises InputError for a foreign spectrum.

        It may come from another process, or from another GPU of this architecture: what is not loaded yet
        is loaded before a spectrum is called foreign. While a graph is captured that is a ToolchainError.
        """
        loaded = self._of_digest(digest, u.device)
        if loaded is None:
            raise InputError(
                f"the spectrum was prepared by another plan ({digest[:8]}): prepare it with this "
                f"convolution, {self!r}, on {u.device}"
            )
        _check_steps(u, loaded.executable.plan.problem)
        return loaded

    def check_kept(self, digest: str, u: Tensor) -> None:
        """Whether a filter that is kept as it is is one of this convolution's, as ``loaded_for`` has it."""
        for problem in (self.problem, self._half):
            if problem is not None and digest == kept_for(problem):
                return _check_steps(u, problem)
        raise InputError(
            f"the spectrum was prepared by another convolution ({digest}): prepare it with this one, {self!r}"
        )


def _check_steps(u: Tensor, problem: Problem) -> None:
    if u.shape[-1] > problem.length:
        raise InputError(
            f"the spectrum was prepared for sequences of at most {problem.length}, u has "
            f"{u.shape[-1]}: conv.prepare(k, length={u.shape[-1]})"
        )
