"""The object a user holds: a convolution of a given length, ready on every device it is called on."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from types import NoneType, SimpleNamespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fftgen import observed, operators, shortcut
from fftgen.bundle import choose, open_shelf
from fftgen.cache import Cache
from fftgen.calls import Calls
from fftgen.check import check_count, check_filter, needs_grad
from fftgen.dtypes import dtype as find_dtype
from fftgen.errors import InputError, ToolchainError
from fftgen.handles import not_loaded, words
from fftgen.kept import as_it_is, as_they_are
from fftgen.loaded import Route, Routes
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.providers import JustInTime, Provider
from fftgen.serving import BATCHES
from fftgen.signature import Form, arrange, autocast, shapes
from fftgen.spectra import Spectrum
from fftgen.storage import TORCH
from fftgen.targets import Target, target_for
from fftgen.targets import target as find_target
from fftgen.values import check_flag, check_path


class Conv(Calls):
    """A depthwise long convolution; made by ``fftgen.get_conv`` or ``fftgen.load``.

    ``conv(u, k)`` computes, per batch row and channel, with ``x = in_gate * u``,
    ``out_gate * (sum_j k_j x_{t-j} + sum_j k_rev_j x_{t+j} + skip * x_t)``, linear or wrapped at seqlen.
    """

    def __init__(self, problem: Problem, provider: Provider, handle: str) -> None:
        super().__init__(problem, provider)
        self.handle = handle
        self._routes = Routes()

    def __repr__(self) -> str:
        p = self.problem
        return f"fftgen.Conv({p.length}, {p.mode}, {p.dtype}, {self.handle})"

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles are the registered object: kernels are found again, not carried along."""
        return registered, (self.handle,)

    def __call__(
        self,
        u: Tensor,
        k: Tensor | Spectrum,
        *,
        k_rev: Tensor | None = None,
        in_gate: Tensor | None = None,
        out_gate: Tensor | None = None,
        skip: Tensor | None = None,
        groups: int | None = None,
        per_row: bool = False,
        reverse: str = "mirrored",
    ) -> Tensor:
        """Convolve.

        u (..., H, L) in the convolution's dtype, 1 <= L <= seqlen; k (H, Lk) real floating point with
        1 <= Lk <= seqlen, or what ``prepare`` returned; in_gate like u, out_gate like the result; skip (H,).
        Returns a new contiguous (..., H, L) of u's dtype on u's device; empty for empty ones.
        signature.py has the other filters: ``groups`` shares rows of k among neighbouring channels,
        k (C, H, Lk) gives (..., C, H, L), ``per_row`` takes a filter per row of u. ``k_rev`` adds
        ``sum_j k_rev_j x_{t+j}`` in the same pass; with ``reverse="shifted"`` its tap j acts at t+j+1, as
        in layers that pad the flipped filter to twice the length (S4's and safari's bidirectional code).

        Causal calls of long sequences with filters much shorter than they go through in windows of a
        shorter transform where the model says that it pays (planner/windows.py).

        Gradients of every argument, to any order. Under autocast u and gates are cast to the convolution's
        dtype, filters are not. CPU tensors may also be float32 or float64. Time should be contiguous: other
        layouts, (B, L, H) transposed among them, are copied; rows that start on 16 bytes are fastest.

        Raises InputError for anything that does not fit, before anything is compiled or launched, and
        ToolchainError when a GPU is wanted and NVRTC or the driver is missing.
        """
        if isinstance(k, Spectrum):
            if k_rev is not None or groups is not None or per_row:
                raise InputError(
                    "a prepared spectrum is of one filter per channel and holds k_rev already: hand in "
                    "neither k_rev nor groups nor per_row beside it"
                )
            here = isinstance(u, Tensor) and u.dim() > 0 and u.is_cuda and k.planes.device == u.device
            if here and as_it_is(k.digest):
                self.check_kept(k.digest, u)
                ahead, *back = k.planes.unbind(1)
                k_rev = back[0] if back else None
                return self(u, ahead, k_rev=k_rev, in_gate=in_gate, out_gate=out_gate, skip=skip)
            return self._with_spectrum(u, k, in_gate, out_gate, skip)
        given = (u, k, k_rev, in_gate, out_gate, skip)
        kind = None
        if observed.plain(*given):
            if observed.diverted():
                with torch._C.DisableTorchFunction():
                    return self(
                        u, k, k_rev=k_rev, in_gate=in_gate, out_gate=out_gate, skip=skip,
                        groups=groups, per_row=per_row, reverse=reverse,
                    )  # fmt: skip
            recorded = observed.recorded(*given)
            kind = (recorded, groups, type(groups), per_row, type(per_row), reverse, *shapes(*given))
            route = self._routes.find(kind)
            if route is not None:
                return route.conv(*given)
        u, in_gate, out_gate = autocast(TORCH[self.problem.dtype], u, in_gate, out_gate)  # type: ignore[assignment]
        x = arrange(self.problem, u, k, k_rev, in_gate, out_gate, skip, Form(groups, per_row, reverse))
        # In the storage type autocast changes nothing, on or off.
        if kind is not None and x.untouched(*given) and u.dtype == TORCH[self.problem.dtype]:
            # Differentiation goes by the operators, which may want other kernels.
            direct = not observed.recorded(*given)
            route = self.route(x.u, x.k, x.k_rev, self.handle, x.gated) if direct else Route(self.handle)
            self._routes.keep(kind, route)
            return route.conv(*given)
        if x.u.is_cuda and observed.unobserved(*x.tensors()):
            return x.back(self.run(*x.tensors())[0])
        return x.back(operators.conv(*x.tensors(), self.handle))

    def _with_spectrum(
        self, u: Tensor, k: Spectrum, in_gate: Tensor | None, out_gate: Tensor | None, skip: Tensor | None
    ) -> Tensor:
        """A call with a spectrum; on CPUs it holds the taps, forward and reversed."""
        given = (u, k.planes, k.scale, in_gate, out_gate, skip)
        unobserved = observed.unobserved(*given)
        kind = None
        if unobserved:
            if observed.diverted():
                with torch._C.DisableTorchFunction():
                    return self._with_spectrum(u, k, in_gate, out_gate, skip)
            lying = k.planes.is_contiguous() and k.scale.is_contiguous()
            kind = (k.digest, k.filter_length, lying, *shapes(*given))
            route = self._routes.find(kind)
            if route is not None and route.loaded is not None:
                return route.loaded.apply(*given)
        u, in_gate, out_gate = autocast(TORCH[self.problem.dtype], u, in_gate, out_gate)  # type: ignore[assignment]
        x = arrange(self.problem, u, None, None, in_gate, out_gate, skip, Form())
        self.check_prepared(k, x.u)
        gates = (x.in_gate, x.out_gate, x.skip)
        if as_it_is(k.digest):
            self.check_kept(k.digest, x.u)
            return x.back(operators.conv(x.u, k.planes[:, 0], k.planes[:, 1], *gates, self.handle))
        if x.u.is_cuda and unobserved:
            y = self.run_prepared(x.u, k.planes, k.scale, *gates, k.digest)  # which looks at the spectrum
            if kind is not None and x.untouched(given[0], None, None, *given[3:]) and x.u.numel():
                self._routes.keep(kind, Route(self.handle, self.loaded_for(k.digest, x.u)))
            return x.back(y)
        operators.registered()
        operator = torch.ops.fftgen.conv_prepared
        return x.back(operator(x.u, k.planes, k.scale, *gates, self.handle, k.digest))

    def prepare(
        self,
        k: Tensor,
        *,
        k_rev: Tensor | None = None,
        length: int | None = None,
    ) -> Spectrum:
        """The filter's spectrum, computed once, for many calls ``conv(u, spectrum)``.

        On a CPU filters get their gradients through it, to any order. On a GPU it passes none: a backward
        pass through a call with it raises InputError.

        k, k_rev (H, Lk); a filter that groups share is expanded first (``k.repeat_interleave``).
        ``length``: the longest sequence that will be convolved; in circular mode a length and filters of
        at most half the transform run as the causal problem of half the length. Where a filter is so short
        that calls go in windows, whose spectra take next to no time, it is kept as it is, as on a CPU. Of
        so many channels that rows had better go in sections whatever the batch, the spectrum is of those.
        Raises InputError for filters that ``__call__`` would refuse or that have leading dimensions, and on a
        GPU for fake tensors.
        """
        both = [check_filter(self.problem, k)]
        if k_rev is not None:
            both.append(check_filter(self.problem, k_rev, "k_rev"))
        if any(f.dim() != 2 or f.shape[0] != k.shape[0] or f.device != k.device for f in both):
            raise InputError(
                f"a spectrum is prepared of filters (channels, taps) on one device, got "
                f"{[tuple(f.shape) for f in both]}: flatten them, and the signals alike"
            )
        longest = self._longest(length)
        taps = max(int(f.shape[-1]) for f in both)
        problem = self.served(longest, taps)
        if not k.is_cuda:
            return as_they_are(both if k_rev is not None else [*both, torch.zeros_like(k)], taps, problem)
        if any(isinstance(f, FakeTensor) for f in both):
            raise InputError(
                "k is a fake tensor, and on a GPU a spectrum is what kernels make of real ones: prepare it "
                "before tracing, or hand in the filter itself, conv(u, k)"
            )
        ends = taps, taps if len(both) > 1 else 0
        if all(self.windows_of(k.device, problem, (b, k.shape[0], longest), *ends) for b in BATCHES):
            return as_they_are(both, taps, problem)
        loaded = self._preparing(k.device, problem, k.shape[0], k_rev is not None)
        made = (loaded or self.on(k.device, problem)).spectrum(k, k_rev)
        if needs_grad(*both):
            made.planes.requires_grad_()  # so that a call is recorded, whose backward pass says what is wrong
        return made

    def plan(self, target: str | Target | None = None) -> Plan:
        """The plan on a target ("sm_90"; default: the current GPU's), of the artifact for a loaded one.

        Raises ToolchainError where no target is named and no GPU is there, InputError for a target that is
        not known, NoPlanError where it has no plan, ArtifactError where a loaded one has none for it.
        """
        if target is None:
            if not torch.cuda.is_available():
                raise ToolchainError("no GPU to plan for: name a target, e.g. conv.plan('sm_90')")
            capability = torch.cuda.get_device_capability()
        else:
            chip = find_target(target)
            capability = (chip.major, chip.minor)
        if isinstance(self._provider, JustInTime):  # no compiler is needed for a plan
            if target is not None:
                return search.plan(self.problem, find_target(target))
            gpu = torch.cuda.get_device_name()
            return shortcut.plan(Cache.default(), self.problem, target_for(capability), gpu=gpu)
        return self._provider.built(self.problem, capability).plan

    def warmup(
        self, device: torch.device | str = "cuda", length: int | None = None, train: bool = False
    ) -> Conv:
        """Compile and load everything that calls on a device need, so that they can be captured in a graph.

        ``length``: of no longer sequences and filters, which may need less: in circular mode the causal
        problem of half the length alone. ``train``: what their gradients need, too. The kernels of sections
        that many rows take are among them; those of windows, and of sections that few rows would take, are
        not: a call before the capture loads them, and without them a captured call takes the kernels of the
        whole. Returns the convolution. On a CPU there is nothing to do. Raises InputError for a device or a
        length that is not served, and what compiling and loading raise.
        """
        try:
            where = torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"device {device!r} is not known to PyTorch: take 'cuda' or 'cuda:0'") from error
        check_flag("train", train)
        longest = self._longest(length)
        if where.type == "cuda":
            for problem in dict.fromkeys((self.served(longest, longest), self.served(1, 1))):
                self.on(where, problem)
                if train:
                    self.gradient_on(where, problem)
                    self.twin_on(where, problem)
                    self.backward_on(where, problem)
                self._warm_sections(where, problem, train)
        return self

    def _longest(self, length: int | None) -> int:
        """The longest sequence that is meant. Raises InputError for one that is not served."""
        longest = self.problem.length if length is None else length
        check_count("length", longest)
        if not 1 <= longest <= self.problem.length:
            raise InputError(
                f"length {longest} is outside 1 to {self.problem.length}: take a convolution that is as long"
            )
        return longest


@cache  # a shorter way to what is registered, where everything stays
def _jit(problem: Problem) -> Conv:
    handle = f"{problem.mode}-{problem.length}-{problem.dtype}"
    return register(Conv(problem, JustInTime(), handle))


# Nothing leaves: compiled graphs hold handles; CUDA graphs, and launches on their way, hold addresses of
# tables and kernels, which no count of references tells of. Looked up by attribute as well: what
# compiled code guards is then the one entry, not all that are there.
_REGISTERED = SimpleNamespace()
_registry: dict[str, Conv] = vars(_REGISTERED)


def register(conv: Conv) -> Conv:
    """Make a convolution known to the operators under its handle."""
    return _registry.setdefault(conv.handle, conv)


def registered(handle: str, steps: int = 1) -> Conv:
    """The convolution behind an operator's handle; just-in-time ones are made from the handle itself.

    ``steps``: the length of the signal, for a handle that leaves it open. Linear problems then share the
    shortest transform that holds it, circular ones have it for their period.
    """
    found = _registry.get(handle)
    if found is not None:
        return found
    if ":" in handle:
        raise InputError(not_loaded(handle))
    mode, length, dtype = words(handle)
    if length != "*":
        return _jit(Problem(mode, int(length), dtype))
    problem = Problem(mode, steps, dtype)
    return _jit(nearest(problem) if problem.causal else problem)


@lru_cache(maxsize=1024)
def nearest(problem: Problem) -> Problem:
    """The causal problem whose length is that of the shortest transform that holds this one."""
    return Problem(problem.mode, search.nearest_transform(problem), problem.dtype)


def get_conv(length: int, dtype: object = torch.bfloat16, *, causal: bool = False) -> Conv:
    """A convolution of transforms or sequences of ``length``, compiled at the first call on a GPU.

    ``causal=False``: circular, ``irfft(rfft(u, length) * rfft(k, length), length)[..., :L]``;
    ``causal=True``: ``y_t = sum_{s<=t} k_s u_{t-s}`` for sequences of at most ``length``.
    ``dtype``: torch.bfloat16, torch.float16 or torch.float32. Equal arguments return the same object.
    Raises InputError for a length or dtype that is not served. In what ``torch.compile`` traces the length
    is a constant, with a graph for each: ``fftconv`` has one for all.
    """
    if torch.compiler.is_dynamo_compiling():
        found: Conv = getattr(_REGISTERED, _ready(int(f"{length}"), dtype, causal))  # no symbol: a number
        return found
    check_flag("causal", causal)
    return _jit(Problem("causal" if causal else "circular", length, find_dtype(dtype).name))


def _ready(length: int, dtype: object, causal: bool) -> str:
    """The handle of ``get_conv``'s result, made while a graph is traced: a lock in it cannot be traced."""
    return get_conv(length, dtype, causal=causal).handle


# What torch.compiler.assume_constant_result does, which would import the whole compiler for it.
_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


def load(
    path: str | Path,
    *,
    sha256: str | None = None,
    length: int | None = None,
    causal: bool | None = None,
    dtype: object = None,
) -> Conv:
    """A convolution from an artifact: the same object as ``get_conv``, without NVRTC.

    ``sha256``: what the file's digest must be. Files of equal content give the same object, others never.
    ``length``, ``causal``, ``dtype`` single one out where the artifact holds several. Every digest in the
    file is checked here; the driver sees it at the first call.
    Raises ArtifactError for a file that is damaged, foreign or newer, InputError when none or several fit.
    """
    place = check_path(path)
    if causal is not None:
        check_flag("causal", causal)
    if not isinstance(sha256, (str, NoneType)):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {sha256!r} ({type(sha256).__name__})")
    shelf = open_shelf(place, sha256)
    problem = choose(shelf, length, causal, None if dtype is None else find_dtype(dtype).name)
    # All of what the file holds, unabridged: by its plans alone, a file would be taken for one that was
    # loaded before with other machine code, whatever digest it has been checked against.
    handle = f"artifact:{shelf.contents.digest}:{problem.mode}-{problem.length}-{problem.dtype}"
    return register(Conv(problem, shelf, handle))
