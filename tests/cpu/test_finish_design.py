"""The end of a filter's gradient as decided: where its kernels find the sum, and their launches."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from plans import added

from fftgen.planner import search
from fftgen.planner.candidates import has_shape
from fftgen.planner.factor import transforms
from fftgen.planner.finish import finish_launches
from fftgen.planner.gradient import gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.order import sum_index
from fftgen.problem import Problem
from fftgen.targets import target

LENGTHS = (
    (256, "sm_90"),
    (1000, "sm_80"),
    (2048, "sm_90"),
    (12_288, "sm_86"),
    (16_384, "sm_86"),
    (20_480, "sm_90"),
    (24_576, "sm_80"),
    (81_920, "sm_90"),
    (131_072, "sm_80"),
    (196_608, "sm_90"),
    (393_216, "sm_120"),
    (983_040, "sm_86"),
    (4_194_304, "sm_90"),
)


@pytest.fixture(params=LENGTHS, ids=lambda p: f"{p[0]}-{p[1]}")
def found(request: pytest.FixtureRequest) -> Gradient:
    length, chip = request.param
    return gradient(Problem("causal", length, "bf16"), chip)


def test_every_place_of_the_transform_gets_its_number_of_the_sum(found: Gradient) -> None:
    """The number that the sum has for a frequency goes where decimation in frequency would have left it."""
    plan, pieces = found.plan, found.plan.filter.pieces
    points = plan.filter.rest or plan.transform
    rows, offsets = plan.transform // points, np.array(pieces.offsets)
    piece, within = added(pieces.at, points // 4), added(pieces.places, points // 4)
    at = added(pieces.rows, rows)[:, None, None] + piece[:, None] + np.arange(4)
    place = added(pieces.row_places, rows)[:, None, None] * points + within[:, None] + offsets
    assert np.array_equal(np.sort(place, axis=None), np.arange(plan.transform))
    frequency, stride = np.zeros(1, np.int64), 1
    transposed = [k for k in reversed(plan.filter.kernels) if k.stages]
    for radix in (s.radix for kernel in transposed for s in kernel.stages):
        frequency = (frequency[:, None] + stride * np.arange(radix)).reshape(-1)
        stride *= radix
    index = sum_index(plan)
    assert np.array_equal(index[at], 2 * frequency[place])
    assert np.array_equal(index[at + pieces.plane], 2 * frequency[place] + 1)
    if (
        not plan.filter.whole
    ):  # a warp reads two runs of 16 pieces side by side, two warps 256 numbers of a plane
        assert np.array_equal(piece[0:32:2], 4 * np.arange(16))
        assert np.array_equal(np.sort(piece[:64]), 4 * np.arange(64))


def test_kernels_fit_the_target(found: Gradient) -> None:
    chip = target(found.plan.target)
    for kernel in found.plan.filter.kernels:
        assert kernel.shared_bytes <= chip.shared_block
        assert kernel.resident * (kernel.shared_bytes + chip.shared_reserved) <= chip.shared_sm
        assert kernel.resident * kernel.threads <= 32 * chip.warps_sm
    own = [(t.offset, t.offset + t.nbytes) for t in found.plan.tables]
    spans = sorted(own + [(t.offset, t.offset + t.nbytes) for t in found.plan.filter.tables])
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] == found.plan.table_bytes


def test_the_decisions_go_through_json(found: Gradient) -> None:
    again = Gradient.from_json(found.to_json())
    assert again == found
    assert again.digest == found.digest
    pieces = dataclasses.replace(found.plan.filter.pieces, at=((2, 4),))
    finish = dataclasses.replace(found.plan.filter, pieces=pieces)
    other = dataclasses.replace(found, plan=dataclasses.replace(found.plan, filter=finish))
    assert other.digest != found.digest


@pytest.mark.parametrize("chip", ["sm_80", "sm_86", "sm_90"])
def test_every_length_that_has_a_gradient_has_its_end(chip: str, rng: np.random.Generator) -> None:
    lengths = [n for n in transforms(256, 300_000) if has_shape(n)]
    seen = 0
    for n in rng.choice(lengths, size=20, replace=False).tolist():
        problem = Problem("causal", n, "fp16")
        if search.plan(problem, target(chip)).engine == "mma":
            seen += 1
            assert gradient(problem, chip).plan.filter.kernels, f"no kernels for {n} on {chip}"
    assert seen > 10


@pytest.mark.parametrize(("channels", "chunk"), [(1, 1), (5, 2), (6, 3), (7, 100)])
def test_chunks_cover_every_channel_once(channels: int, chunk: int) -> None:
    plan = gradient(Problem("causal", 65_000, "bf16"), "sm_90").plan
    bounded = dataclasses.replace(plan.filter, chunk_bytes=chunk * 8 * plan.transform)
    rows, columns, wrap = bounded.kernels
    straight = finish_launches(bounded, plan.transform, channels, 1000, 0)
    for kernel, blocks in ((rows, plan.transform // rows.length), (columns, rows.length // columns.columns)):
        mine = [x for x in straight if x.kernel == kernel]
        done = [c for x in mine for c in range(x.first, x.first + x.grid // blocks)]
        assert done == list(range(channels))
        assert max(x.grid // blocks for x in mine) <= chunk
    assert [x.kernel for x in straight] == [rows, columns] * -(-channels // chunk)
    around = finish_launches(bounded, plan.transform, channels, 1000, 65_000)
    assert around[:-1] == straight
    assert (around[-1].kernel, around[-1].grid) == (wrap, 4 * channels)
    assert finish_launches(bounded, plan.transform, channels, 1000, 65_536) == straight
