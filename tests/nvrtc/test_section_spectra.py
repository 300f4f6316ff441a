"""Filters' spectra of all distances of sections, by kernels in the simulator: against float64 and torch."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import compiled
import numpy as np
import numpy.typing as npt
import pytest
import torch
from cases import slow
from command_line import why_not
from test_filter_kernel import draw
from test_sections import changed
from test_sections_both_ways import planned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fftgen import emulate
from fftgen.planner import tables
from fftgen.planner.order import spectrum_digits
from fftgen.planner.plan import CIRCULANT, FULL, LOWER, Plan
from fftgen.prepare import prepare
from fftgen.render import render
from fftgen.simulator import SimulationError
from fftgen.source import Source
from fftgen.spectra import EMPTY, natural_order, spectrum, with_skip

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ROUNDED = 4e-4  # of the norm: rounding to fp16 once, and what is left of a spectrum's smallest numbers
MATRICES = (LOWER, FULL, CIRCULANT)
# By one block each, and by columns and rows.
SHAPES = ((3, 8192, "sm_90"), (2, 12_288, "sm_120"), *slow([(4, 8192, "sm_80"), (2, 24_576, "sm_80")]))


@lru_cache(maxsize=4)
def module(plan: Plan) -> tuple[Source, str, Tensor]:
    source = render(plan)
    block = torch.frombuffer(bytearray(tables.build(plan)), dtype=torch.uint8)
    return source, compiled.line_ptx(source, plan.target), block


def make(
    plan: Plan, k: Tensor | None, k_rev: Tensor | None = None, skip: Tensor | None = None, ptx: str = ""
) -> tuple[Tensor, Tensor]:
    """Planes and scales by the kernels, all of which must have written all of them."""
    source, own, block = module(plan)
    simulated = emulate.Simulated(ptx or own, source.text)
    made = prepare(plan, block, simulated, k, k_rev, skip, address=simulated.address)
    assert simulated.unwritten("filter_planes") == simulated.unwritten("filter_scale") == 0
    return made.planes, made.scale


def exact(
    plan: Plan, k: Tensor | None, k_rev: Tensor | None, skip: Tensor | None
) -> npt.NDArray[np.complex128]:
    """The natural spectra (D, H, N) in float64, tap by tap of what acts when."""
    n, reach = plan.transform, plan.points
    given = next(f for f in (k, k_rev) if f is not None)
    acting = np.zeros((given.shape[0], 2 * reach + 1))  # at times -reach .. reach
    if k is not None:
        acting[:, reach : reach + k.shape[1]] += k.double().numpy()
    if k_rev is not None:
        acting[:, reach - k_rev.shape[1] + 1 : reach + 1] += k_rev.double().numpy()[:, ::-1]
    if skip is not None:
        acting[:, reach] += skip.double().numpy()
    if plan.matrix == CIRCULANT:
        around = acting[:, reach:-1] + acting[:, :reach]
        acting = np.concatenate([around, around, around[:, :1]], axis=1)
    found = []
    for distance in range(plan.distances):
        later = distance if distance < plan.sections else distance - plan.distances
        now = reach + later * n
        x = acting[:, now : now + n].astype(complex)
        x[:, 1:] -= 1j * acting[:, now - n + 1 : now]  # x^-m = -i x^(N - m)
        found.append(np.fft.fft(x * np.exp(1j * np.pi / (2 * n) * np.arange(n))))
    return np.stack(found)


def check(
    plan: Plan,
    k: Tensor | None,
    k_rev: Tensor | None = None,
    skip: Tensor | None = None,
    ptx: str = "",
) -> Tensor:
    """Returns the scales (D, H)."""
    planes, scale = make(plan, k, k_rev, skip, ptx)
    wanted = exact(plan, k, k_rev, skip)
    reference = spectrum(plan, k, k_rev, skip)
    assert torch.equal(scale[..., 0], reference.scale[..., 0])
    natural = natural_order(planes.flatten(0, 1).flatten(1).double(), spectrum_digits(plan))
    of_torch = natural_order(reference.planes.flatten(0, 1).flatten(1).double(), spectrum_digits(plan))
    for made in (natural, of_torch):
        found = torch.view_as_complex(made.contiguous()).numpy().reshape(wanted.shape)
        up = scale[..., :1].double().numpy()
        size = np.linalg.norm(wanted * up, axis=-1)
        error = np.linalg.norm(found - wanted * up, axis=-1)
        assert (error <= ROUNDED * size).all()
    zero = torch.from_numpy(~wanted.any(axis=-1))
    assert bool((scale[..., 0][zero] == EMPTY).all())
    largest = planes.double().unflatten(-1, (1, -1)).abs().amax((-3, -2, -1))
    assert bool(((largest >= 0.35) | zero).all())  # a part of the largest modulus, which is 1/2 to 1
    assert bool((largest <= 1).all())
    return scale[..., 0]


@pytest.mark.drawn(6)
@pytest.mark.parametrize(("sections", "points", "arch"), SHAPES)
@pytest.mark.parametrize("matrix", MATRICES)
def test_spectra_of_all_distances(
    matrix: str, sections: int, points: int, arch: str, rng: np.random.Generator
) -> None:
    """Filters as long as rows and shorter ones, in one direction and both, strided, with a skip term."""
    plan = planned(matrix, sections, points, arch=arch)
    length = plan.problem.length
    wide = draw(rng, 2, length + 5)
    skip = draw(rng, 2, 1)[:, 0]
    if matrix == LOWER:
        check(plan, wide[:, 3 : 3 + length], skip=skip)
        check(plan, draw(rng, 1, points + 77))
        return
    check(plan, wide[:, 3 : 3 + length], draw(rng, 2, points + 77), skip)
    check(plan, None, draw(rng, 1, length))
    check(plan, draw(rng, 1, 5))


@pytest.mark.drawn(3)
@pytest.mark.parametrize("matrix", MATRICES)
def test_spectra_of_zeros_ask_for_no_room(matrix: str, rng: np.random.Generator) -> None:
    """A filter that delays by whole sections is in one spectrum alone: at the first place of a section, what
    reaches into the next one does not arrive there. Later by one step it does."""
    plan = planned(matrix, 3)
    k = torch.zeros(2, plan.problem.length)
    k[0, 2 * 8192], k[1, 8192 + 1] = 3.0, 1e-6
    scale = check(plan, k)
    full = {LOWER: 3, FULL: 5, CIRCULANT: 3}[matrix]
    assert (scale[:, 0] == EMPTY).sum() == full - 1
    assert (scale[:, 1] == EMPTY).sum() == full - 2
    nothing = check(plan, torch.zeros(1, 100))
    assert bool((nothing == EMPTY).all())
    assert int((check(plan, torch.zeros(1, 100), skip=torch.tensor([2.0])) == EMPTY).sum()) == full - 1


def test_a_skip_joins_a_spectrum_of_zeros(rng: np.random.Generator) -> None:
    """Whose scale is so large that their product is beyond fp32."""
    plan = planned(LOWER, 2)
    k = torch.zeros(3, plan.problem.length)
    k[:, 8192 + 9 :] = draw(rng, 3, 8192 - 9)
    skip = torch.tensor([1e-3, 40.0, -1e30])
    planes, scale = with_skip(plan, *make(plan, k), skip)
    natural = natural_order(planes[0].flatten(1).double(), spectrum_digits(plan))
    found = torch.view_as_complex(natural.contiguous()) / scale[0, :, :1].double()
    wanted = skip.double()[:, None].expand(-1, plan.transform)
    assert float(((found - wanted).abs() / wanted.abs()).max()) < 1e-3
    assert torch.allclose(scale[0].prod(-1), torch.tensor(plan.residual), rtol=1e-6)


@pytest.mark.parametrize("matrix", MATRICES)
def test_nothing_but_their_kernels_makes_them(matrix: str) -> None:
    """On a GPU each operation of torch is a launch more; of few rows they took longer than all the rest."""
    plan = planned(matrix, 3)
    worked: list[str] = []
    views = ("slice", "select", "view", "detach", "empty", "alias", "expand", "unsqueeze")

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(function).split(".")[1] not in views:
                worked.append(str(function))
            return function(*args, **(kwargs or {}))

    class Launcher:
        def __init__(self) -> None:
            self.entries: list[str] = []

        def launch(self, entry: str, *_: Any) -> None:
            self.entries.append(entry)

    k, skip, block = torch.ones(2, plan.problem.length), torch.ones(2), torch.zeros(1)
    launcher = Launcher()
    with Noting():
        prepare(plan, block, launcher, k, None if matrix == LOWER else k, skip)
    assert launcher.entries == [plan.filter_entry(kernel) for kernel in plan.filter.kernels]
    assert worked == []


MUTATIONS = {
    "what reaches into the next section": (LOWER, "n > 0 ? acting(lag + n - N) : 0.0f", "0.0f"),
    "the first tap of a section twice": (LOWER, "n > 0 ? acting(lag + n - N) : 0.0f", "acting(lag + n - N)"),
    "the distance": (LOWER, "const int lag = distance * N", "const int lag = 0 * N"),
    "distances backwards": (FULL, "distance < SECTIONS ? distance : distance - 5", "distance"),
    "reverse taps one off": (FULL, "tap_at(back, -1 - t, args.reach)", "tap_at(back, -t, args.reach)"),
    "the circle": (CIRCULANT, "return linear(t) + linear(t > 0 ? ", "return linear(t) + 0 * linear(t > 0 ? "),
    "the channel": (LOWER, "h = channel - distance * args.channels", "h = distance"),
    "the skip of another distance": (LOWER, "if (lag == 0 && place(0) == 0)", "if (place(0) == 0)"),
    "room for zeros": (LOWER, "if (empty) exponent = -MOST;", ""),
}


@pytest.mark.drawn(5)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_makes_them_right_is_missed(mutation: str, rng: np.random.Generator) -> None:
    matrix, before, after = MUTATIONS[mutation]
    plan = planned(matrix, 3)
    source = changed(module(plan)[0], before, after)
    ptx = compiled.line_ptx(replace(source), plan.target)
    k = draw(rng, 2, plan.problem.length - 100)
    k[1, 50:] = 0
    back = None if matrix == LOWER else k.flip(1)
    with pytest.raises((AssertionError, SimulationError)):
        check(plan, k, back, torch.ones(2), ptx)
