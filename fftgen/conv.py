"""The object a user holds: a convolution of a given length, ready on every device it is called on."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fftgen import eager
from fftgen.bundle import choose, open_shelf, padded
from fftgen.check import check_filter, check_gate, check_input, check_skip, needs_grad
from fftgen.dtypes import dtype as find_dtype
from fftgen.errors import InputError, ToolchainError
from fftgen.execute import Executable, Spectrum, time_contiguous
from fftgen.pipeline import Built, build
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.prepare import prepare
from fftgen.problem import Problem
from fftgen.runtime import Module
from fftgen.targets import Target, target_for
from fftgen.targets import target as find_target


class Provider(Protocol):
    """Where kernels come from: the compiler, or an artifact."""

    def has(self, problem: Problem) -> bool:
        """Whether kernels for a problem can be had."""

    def built(self, problem: Problem, capability: tuple[int, int]) -> Built:
        """The kernels for a problem on a device of this compute capability."""


CPU_DIGEST = "torch.fft"  # stands where a plan's digest would: a filter kept as it is


class JustInTime:
    """Plans and compiles for a device, through the cache."""

    def has(self, problem: Problem) -> bool:
        return True

    def built(self, problem: Problem, capability: tuple[int, int]) -> Built:
        return build(problem, target_for(capability))


class Loaded:
    """A built module on one GPU."""

    def __init__(self, built: Built, device: torch.device) -> None:
        index = device.index or 0
        self.module = Module(built.image, index, built.entries)
        block = torch.frombuffer(bytearray(built.tables), dtype=torch.uint8)
        self.executable = Executable(built.plan, block.to(device))

    def spectrum(self, k: Tensor, skip: Tensor | None = None) -> Spectrum:
        """The spectrum of a filter (H, Lk) with a skip term (H,), on the current stream of its device."""
        stream = torch.cuda.current_stream(k.device).cuda_stream
        return prepare(self.executable.plan, self.executable.tables, self.module.on(stream), k, skip)


class Conv:
    """A depthwise long convolution; made by ``fftgen.get_conv`` or ``fftgen.load``.

    ``conv(u, k)`` computes, per batch row and channel,
    ``out_gate * (conv(in_gate * u, k) + skip * (in_gate * u))``.
    """

    def __init__(self, problem: Problem, provider: Provider, handle: str) -> None:
        self.problem = problem
        self.handle = handle
        self._provider = provider
        self._loaded: dict[tuple[Problem, torch.device], Loaded] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        p = self.problem
        return f"fftgen.Conv({p.length}, {p.mode}, {p.dtype}, {self.handle})"

    def __call__(
        self,
        u: Tensor,
        k: Tensor | Spectrum,
        *,
        in_gate: Tensor | None = None,
        out_gate: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Convolve.

        u (B, H, L) in the convolution's dtype, 1 <= L <= seqlen; k (H, Lk) real floating point with
        1 <= Lk <= seqlen, or what ``prepare`` returned; in_gate, out_gate like u; skip (H,).
        Returns a new contiguous (B, H, L) of u's dtype on u's device; B = 0 or H = 0 give an empty one.
        Time should be contiguous (other layouts are copied); rows that start on 16 bytes are fastest.

        Raises InputError for anything that does not fit, before anything is compiled or launched, and
        ToolchainError when a GPU is wanted and NVRTC or the driver is missing.
        """
        check_input(self.problem, u)
        check_gate("in_gate", in_gate, u)
        check_gate("out_gate", out_gate, u)
        check_skip(skip, u)
        if isinstance(k, Spectrum):
            self._check_spectrum(k, u)
            if u.device.type != "cuda":
                return self._eager(u, k.planes, in_gate, out_gate, skip)
            self._refuse_gradients(u, None, in_gate, out_gate, skip)
            y: Tensor = torch.ops.fftgen.conv_prepared(
                u, k.planes, k.scale, in_gate, out_gate, skip, self.handle, k.digest
            )
            return y
        check_filter(self.problem, k, u)
        if u.device.type != "cuda":
            return self._eager(u, k, in_gate, out_gate, skip)
        self._refuse_gradients(u, k, in_gate, out_gate, skip)
        out: Tensor = torch.ops.fftgen.conv(u, k, in_gate, out_gate, skip, self.handle)
        return out

    def prepare(self, k: Tensor, *, length: int | None = None) -> Spectrum:
        """The filter's spectrum, computed once, for many calls ``conv(u, spectrum)``.

        k (H, Lk). ``length``: the longest sequence that will be convolved; in circular mode a length and
        a filter of at most half the transform run as the causal problem of half the length.
        """
        check_filter(self.problem, k)
        longest = self.problem.length if length is None else length
        if not 1 <= longest <= self.problem.length:
            raise InputError(f"length {longest} is outside 1 to {self.problem.length}")
        if k.device.type != "cuda":
            taps = k.detach().to(torch.float64 if k.dtype == torch.float64 else torch.float32).clone()
            return Spectrum(taps, torch.ones(k.shape[0], 2), CPU_DIGEST, int(k.shape[-1]))
        loaded = self.on(k.device, self.served(longest, int(k.shape[-1])))
        return loaded.spectrum(k)

    def plan(self, target: str | Target | None = None) -> Plan:
        """The plan on a target ("sm_90"; default: the current GPU's), of the artifact for a loaded one."""
        if target is None:
            if not torch.cuda.is_available():
                raise ToolchainError("no GPU to plan for: name a target, e.g. conv.plan('sm_90')")
            capability = torch.cuda.get_device_capability()
        else:
            chip = find_target(target)
            capability = (chip.major, chip.minor)
        if isinstance(self._provider, JustInTime):  # no compiler is needed for a plan
            return search.plan(
                self.problem, target_for(capability) if target is None else find_target(target)
            )
        return self._provider.built(self.problem, capability).plan

    def warmup(self, device: torch.device | str = "cuda", length: int | None = None) -> Conv:
        """Compile and load everything that calls on a device need, so that they can be captured in a graph.

        ``length`` as in ``prepare``. Returns the convolution itself.
        """
        where = torch.device(device)
        if where.type == "cuda":
            longest = self.problem.length if length is None else length
            for problem in {self.problem, self.served(longest, longest)}:
                self.on(where, problem)
        return self

    def served(self, length: int, taps: int) -> Problem:
        """The problem that a call becomes: padded circular calls are causal ones of half the length.

        An artifact without the half serves them as they are: the result is the same.
        """
        half = padded(self.problem)
        if half is not None and max(length, taps) <= half.length and self._provider.has(half):
            return half
        return self.problem

    def on(self, device: torch.device, problem: Problem) -> Loaded:
        """The kernels of a problem on a GPU, built and loaded at the first call."""
        index = torch.cuda.current_device() if device.index is None else device.index
        key = (problem, torch.device("cuda", index))
        found = self._loaded.get(key)
        if found is None:
            with self._lock:
                found = self._loaded.get(key)
                if found is None:
                    if torch.cuda.is_current_stream_capturing():
                        raise ToolchainError(
                            f"{self!r} is not loaded on {key[1]} and a CUDA graph is being captured: "
                            "call conv.warmup() before the capture"
                        )
                    built = self._provider.built(problem, torch.cuda.get_device_capability(key[1]))
                    found = self._loaded[key] = Loaded(built, key[1])
        return found

    def _eager(
        self, u: Tensor, k: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, skip: Tensor | None
    ) -> Tensor:
        p = self.problem
        return eager.convolve(
            u, k, mode=p.mode, length=p.length, in_gate=in_gate, out_gate=out_gate, skip=skip
        )

    def _check_spectrum(self, k: Spectrum, u: Tensor) -> None:
        if k.planes.device != u.device:
            raise InputError(f"the spectrum is on {k.planes.device}, u on {u.device}: prepare it there")
        if k.channels != u.shape[1]:
            raise InputError(f"the spectrum has {k.channels} channels, u has {u.shape[1]}")
        if (k.digest == CPU_DIGEST) != (u.device.type != "cuda"):
            raise InputError(
                f"the spectrum was prepared for another device than {u.device}: prepare it there"
            )
        if k.filter_length > self.problem.length:
            raise InputError(
                f"the spectrum holds a filter of {k.filter_length} taps, this convolution takes at most "
                f"{self.problem.length}: prepare it with this convolution"
            )

    def loaded_for(self, digest: str, u: Tensor) -> Loaded:
        """The kernels that a prepared spectrum belongs to. Raises InputError for a foreign spectrum."""
        half = self.served(1, 1)
        for problem in dict.fromkeys((self.problem, half)):
            loaded = self._loaded.get((problem, u.device))
            if loaded is not None and loaded.executable.plan.digest == digest:
                if u.shape[-1] > problem.length:
                    raise InputError(
                        f"the spectrum was prepared for sequences of at most {problem.length}, u has "
                        f"{u.shape[-1]}: conv.prepare(k, length={u.shape[-1]})"
                    )
                return loaded
        raise InputError(
            f"the spectrum was prepared by another plan ({digest[:8]}): prepare it with this convolution, "
            f"{self!r}, on {u.device}"
        )

    def _refuse_gradients(self, *tensors: Tensor | None) -> None:
        if needs_grad(*tensors):
            raise InputError(
                "gradients through the CUDA kernels are not available yet: call under torch.no_grad(), "
                "detach the arguments, or use CPU tensors"
            )

    # The operators of op.py call these two.

    def run(
        self, u: Tensor, k: Tensor, in_gate: Tensor | None, out_gate: Tensor | None, skip: Tensor | None
    ) -> Tensor:
        """A whole call on a GPU: spectrum, then kernels, on the current stream."""
        if u.numel() == 0:
            return torch.empty_like(u)
        loaded = self.on(u.device, self.served(u.shape[-1], k.shape[-1]))
        made = loaded.spectrum(k, skip)
        return self.launch(loaded, u, made.planes, made.scale, in_gate, out_gate)

    def launch(
        self,
        loaded: Loaded,
        u: Tensor,
        planes: Tensor,
        scale: Tensor,
        in_gate: Tensor | None,
        out_gate: Tensor | None,
    ) -> Tensor:
        """The kernels of a call, on the current stream of u's device."""
        stream = torch.cuda.current_stream(u.device).cuda_stream
        signals = [time_contiguous(x) for x in (u, in_gate, out_gate)]
        assert signals[0] is not None
        return loaded.executable(
            loaded.module.on(stream),
            signals[0],
            planes,
            scale,
            signals[1],
            signals[2],
        )


@lru_cache(maxsize=256)
def _jit(problem: Problem) -> Conv:
    handle = f"{problem.mode}-{problem.length}-{problem.dtype}"
    return register(Conv(problem, JustInTime(), handle))


_registry: dict[str, Conv] = {}


def register(conv: Conv) -> Conv:
    """Make a convolution known to the operators under its handle."""
    return _registry.setdefault(conv.handle, conv)


def registered(handle: str) -> Conv:
    """The convolution behind an operator's handle; just-in-time ones are made from the handle itself."""
    found = _registry.get(handle)
    if found is not None:
        return found
    parts = handle.split("-")
    if len(parts) == 3 and parts[1].isdigit() and ":" not in handle:
        return _jit(Problem(parts[0], int(parts[1]), parts[2]))
    raise InputError(f"no convolution is loaded under {handle!r}: call fftgen.load on its artifact first")


def get_conv(length: int, dtype: object = torch.bfloat16, *, causal: bool = False) -> Conv:
    """A convolution of transforms or sequences of ``length``, compiled at the first call on a GPU.

    ``causal=False``: circular, ``irfft(rfft(u, length) * rfft(k, length), length)[..., :L]``;
    ``causal=True``: ``y_t = sum_{s<=t} k_s u_{t-s}`` for sequences of at most ``length``.
    ``dtype``: torch.bfloat16 or torch.float16. Equal arguments return the same object.
    Raises InputError for a length or dtype that is not served.
    """
    return _jit(Problem("causal" if causal else "circular", length, find_dtype(dtype).name))


def load(
    path: str | Path,
    *,
    sha256: str | None = None,
    length: int | None = None,
    causal: bool | None = None,
    dtype: object = None,
) -> Conv:
    """A convolution from an artifact: the same object as ``get_conv``, without NVRTC.

    ``sha256``: what the file's digest must be. ``length``, ``causal``, ``dtype`` single one out where the
    artifact holds several. Every digest in the file is checked here; the driver sees it at the first call.
    Raises ArtifactError for a file that is damaged, foreign or newer, InputError when none or several fit.
    """
    shelf = open_shelf(path, sha256)
    problem = choose(shelf, length, causal, None if dtype is None else find_dtype(dtype).name)
    plans = ",".join(sorted(m.plan_digest for m in shelf.contents.modules))
    digest = hashlib.sha256(plans.encode()).hexdigest()[:16]
    handle = f"artifact:{digest}:{problem.mode}-{problem.length}-{problem.dtype}"
    return register(Conv(problem, shelf, handle))


def fftconv(
    u: Tensor,
    k: Tensor,
    *,
    mode: str = "causal",
    in_gate: Tensor | None = None,
    out_gate: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """Functional form: finds or makes the convolution for these shapes.

    "causal": the transform is the cheapest that holds u and k, so lengths close to each other share
    kernels; "circular": period L = u.shape[-1], filters of at most L taps. Arguments as ``Conv.__call__``.
    """
    if not isinstance(u, Tensor) or not isinstance(k, Tensor) or u.dim() != 3 or k.dim() != 2:
        raise InputError("u must be a (batch, channels, length) tensor and k a (channels, taps) tensor")
    length = max(int(u.shape[-1]), int(k.shape[-1]) if mode == "causal" else 1)
    problem = Problem(mode, length, find_dtype(u.dtype).name)
    if problem.causal:
        problem = Problem(mode, search.nearest_transform(problem), problem.dtype)
    return _jit(problem)(u, k, in_gate=in_gate, out_gate=out_gate, skip=skip)
