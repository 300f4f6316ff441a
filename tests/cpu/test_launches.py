"""Launches: every transform in one chunk, every piece of work with one worker, memory within its bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from plans import engines

from fftgen import execute
from fftgen.errors import DriverError
from fftgen.execute import chip_of
from fftgen.launch import reciprocal
from fftgen.planner import sections, spread
from fftgen.planner.gradient import backward
from fftgen.planner.gradient_launch import OWN, WAVES, least_share, parts, sharing, space
from fftgen.planner.gradient_launch import launches as gradient_launches
from fftgen.planner.gradient_sections import in_sections
from fftgen.planner.launch import (
    MAX_ROWS,
    MAX_RUN,
    START,
    Launch,
    chunk_items,
    items_per_channel,
    launches,
    peaks_words,
    run_of,
    together,
    workspace_elements,
)
from fftgen.planner.plan import Plan
from fftgen.planner.search import plan
from fftgen.planner.whole import clusters, fewest, full, holding
from fftgen.problem import Problem
from fftgen.targets import target

SHAPES = ((1, 1), (1, 3), (2, 1), (3, 5), (7, 2), (64, 17), (33, 768))
QUESTIONS = (
    ("causal", 100),
    ("circular", 1024),
    ("causal", 2000),
    ("causal", 4096),
    ("circular", 5003),
    ("causal", 20000),
    ("circular", 65536),
    ("circular", 100000),
    ("causal", 1048576),
)


def plans() -> list[Plan]:
    """On every engine that has one."""
    names = ("sm_75", "sm_90")
    return [found for q in QUESTIONS for name in names for found in engines(Problem(*q, "fp16"), name)]


def workers(launch: Launch) -> int:
    """What takes pieces by itself: every warp, each place of a warp's group, or the block as a whole."""
    return launch.kernel.items


def pieces(found: Plan, launch: Launch) -> int:
    """Work of a launch by its kernel's role, counted from the transform's shape."""
    if launch.kernel.role == "convolve":
        return launch.items
    if launch.kernel.role == "rows":
        rows = 1
        for stage in found.device_stages:
            rows *= stage.radix
        return launch.items * rows
    stage = found.stages[launch.kernel.stage - 1]
    width = 8 * launch.kernel.columns if found.engine == "mma" else 16  # columns of a strip
    return launch.items * found.transform // stage.radix // width


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_hold_every_transform_once_and_run_through_all_kernels(shape: tuple[int, int]) -> None:
    batch, channels = shape
    for found in plans():
        assert items_per_channel(found, batch) == -(-batch // found.rows_per_item)
        total = -(-channels // found.abreast) * items_per_channel(found, batch)
        made = launches(found, batch, channels, found.problem.length)
        count = len(found.kernels)
        at = 0
        for start in range(0, len(made), count):
            group = made[start : start + count]
            assert [g.kernel for g in group] == list(found.kernels)
            assert {(g.first, g.items) for g in group} == {(at, group[0].items)}
            assert group[0].items > 0
            at += group[0].items
        assert at == total


@pytest.mark.parametrize("shape", SHAPES)
def test_every_piece_has_exactly_one_worker_and_no_block_is_idle(shape: tuple[int, int]) -> None:
    for found in plans():
        for launch in launches(found, *shape, found.problem.length):
            kernel = launch.kernel
            assert launch.block == 32 * kernel.warps <= 1024
            assert launch.shared_bytes == kernel.shared_bytes
            assert launch.entry == found.entry(kernel)
            assert 1 <= launch.grid < 2**31
            if kernel.role == "peaks":
                assert launch.grid % launch.items == 0
                if kernel.role == "peaks":  # a block to so many numbers of a row
                    rows = launch.items * found.rows_per_item
                    assert launch.grid == rows * -(-found.problem.length // kernel.plane)
                continue
            todo = pieces(found, launch)
            per_block = workers(launch) * launch.run
            assert (launch.grid - 1) * per_block < todo <= launch.grid * per_block
            assert todo < 2**31


def test_sizes_of_rows_have_room_for_the_whole_call() -> None:
    """A peak to a row; two to a pair, and two sums in double: PairSize in device/scaled_peaks.cuh.

    Behind them the peaks of strips of all rows that go through the workspace together (device/strips.cuh).
    """
    seen = set()
    for found in plans():
        peaks = any(kernel.role == "peaks" for kernel in found.kernels)
        seen.add((peaks, found.strip_peaks > 0, found.packing))
        one = 1 if found.packing == "right-angle" else 2 * 4 + 2 * 8 >> 2
        strips = 0
        if found.strip_peaks:
            strips = found.stages[0].rest // (8 * found.kernel("columns").columns)
        for batch, channels in SHAPES:
            items = (batch if found.packing == "right-angle" else (batch + 1) // 2) * channels
            words = (one * items if peaks or strips else 0) + strips * chunk_items(found, items)
            assert peaks_words(found, batch, channels) == words
    rows, pairs = "right-angle", "batch-pair"
    assert {(True, False, rows), (False, True, rows), (True, False, pairs)} <= seen


def test_pieces_are_dealt_out_as_the_kernels_take_them() -> None:
    """Small launches piece by piece: consecutive pieces of a worker, or of a block's warps in turn."""
    for found in plans():
        for launch in launches(found, 3, 1, found.problem.length):
            if launch.kernel.role == "peaks" or pieces(found, launch) > 5000:
                continue
            taken: Counter[int] = Counter()
            for block in range(launch.grid):
                for worker in range(workers(launch)):
                    for i in range(launch.run):
                        if launch.kernel.role.startswith("columns"):
                            piece = (block * launch.run + i) * workers(launch) + worker
                        elif (
                            found.engine == "mma" and not found.block_stage
                        ):  # a group of neighbours at a time
                            warp, place = divmod(worker, launch.kernel.group)
                            group = (block * launch.kernel.warps + warp) * launch.run + i
                            piece = group * launch.kernel.group + place
                        else:
                            piece = (block * workers(launch) + worker) * launch.run + i
                        taken[piece] += piece < pieces(found, launch)
            assert +taken == Counter(range(pieces(found, launch)))


def test_the_workspace_does_not_grow_with_the_batch() -> None:
    for found in plans():
        sizes = [workspace_elements(found, batch, 768) for batch in (1, 64, 100_000)]
        if found.memory_class != "device":
            assert sizes == [0, 0, 0]
            continue
        assert all(2 * size <= found.chunk_bytes for size in sizes)
        assert sizes[1] == sizes[2]
        assert workspace_elements(found, 1, 1) == 2 * found.transform
        widest = max(launch.items for launch in launches(found, 64, 768, found.problem.length))
        assert 2 * found.transform * widest == sizes[1]


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_clusters_fit_the_chip_and_what_is_under_way_fits_its_l2(mode: str, name: str) -> None:
    chip = target(name)
    for length in (32_768, 65_536, 131_072, 1 << 20, 1 << 22):
        found = plan(Problem(mode, length, "bf16"), name)
        if found.whole is None:
            assert clusters(found, 1 << 20) is None
            continue
        kernel = found.whole
        blocks = chip.multiprocessors * kernel.resident
        assert chip.resident_blocks(kernel.warps, kernel.shared_bytes, 128) >= kernel.resident
        assert (kernel.brought > 0) == (kernel.row == 0)  # gates of results, in the place of rows
        assert 16 * kernel.plane * kernel.warps <= kernel.matrices_at
        least = fewest(found)
        for items in (1, least - 1, least, least + 1, 50, 1000, 1 << 30):
            whole = clusters(found, items)
            turns = -(-items // (blocks // holding(found, kernel))) if kernel.row else 0
            assert (whole is None) == (items < least or items < 0.8 * turns * blocks)
            if whole is None:
                continue
            assert whole.size in ((1, 2, 4, 8) if chip.capability >= 90 else (1,))
            assert whole.total <= items
            assert whole.total <= chip.most_clusters(whole.size, kernel.resident) <= blocks / whole.size
            assert 4 * found.transform * whole.total <= chip.l2_bytes
        many = full(found)
        assert many is not None
        assert many.size * many.total >= 0.8 * blocks


@pytest.mark.parametrize("name", ["sm_90", "sm_100", "sm_120"])
def test_clusters_stay_within_a_gpc(name: str) -> None:
    """Whatever part of a chip is there, GPCs have all multiprocessors of it between them."""
    chip = target(name)
    for there in (*range(1, chip.multiprocessors + 1), 170):
        part = chip.on(there, chip.l2_bytes)
        for gpcs in part.gpcs:
            assert sum(gpcs) == there
            assert all(0 < own <= chip.gpc for own in gpcs)
        assert part.clusters(1, 2) == part.most_clusters(1, 2) == 2 * there
        for size in range(1, 9):
            assert part.clusters(size, 1) <= part.most_clusters(size, 1) <= there // size
            assert part.clusters(size, 1) <= part.clusters(size, 2)


def test_clusters_are_as_many_as_an_h100_was_seen_to_run() -> None:
    """On 120 of 132 multiprocessors are clusters of eight (Target.gpcs); all of them have pairs."""
    chip = target("sm_90")
    assert [n * chip.clusters(n, 1) for n in (1, 2, 8)] == [132, 132, 120]
    assert chip.most_clusters(8, 1) == 16
    assert target("sm_89").clusters(1, 1) == 142
    assert target("sm_89").gpcs == ((), ())


def test_one_launch_has_a_place_and_a_ticket_for_every_cluster() -> None:
    for mode in ("causal", "circular"):
        found = plan(Problem(mode, 131_072, "bf16"), "sm_90")
        for batch, channels in ((1, 1000), (64, 96), (65, 7)):
            whole = together(found, batch, channels)
            assert whole is not None
            items = channels * items_per_channel(found, batch)
            (launch,) = launches(found, batch, channels, 131_072, whole)
            assert launch.kernel == found.whole
            assert launch.entry == found.entry(launch.kernel)
            assert (launch.grid, launch.cluster) == (whole.size * whole.total, whole.size)
            assert (launch.first, launch.items) == (0, items)
            assert workspace_elements(found, batch, channels, whole) == 2 * found.transform * whole.total
            words = peaks_words(found, batch, channels, whole)
            strips = 131_072 // 32 // 32 if mode == "causal" else 0  # 32 columns of radix 32
            sizes = items if mode == "causal" else 6 * items
            assert words == sizes + 1 + whole.total * (1 + strips)
        assert together(found, 1, 1) is None


GPUS = {  # multiprocessors, MiB of L2: fewer, a share of one, more than that which plans are made for
    "sm_80": ((56, 24), (14, 5)),
    "sm_90": ((114, 50), (78, 60), (16, 7), (1, 7), (144, 60)),
    "sm_89": ((58, 48), (128, 72)),
}


@pytest.mark.parametrize(
    ("name", "there"), [(name, there) for name, some in GPUS.items() for there in some], ids=str
)
def test_launches_are_as_wide_as_the_gpu_that_is_there(name: str, there: tuple[int, int]) -> None:
    """What fills it at once, not another of its architecture: blocks beyond that would go in a turn of their
    own. The workspace is that of these launches."""
    chip = target(name).on(there[0], there[1] << 20)
    for length in (65_536, 131_072):
        problem = Problem("causal", length, "bf16")
        whole = plan(problem, name)
        for found in sections.of(problem, lambda q: plan(q, name)):
            slots = chip.multiprocessors * found.body.resident
            for rows in (1, slots, slots + 1, 5000):
                if found.spread:
                    of = together(found, rows, 1, chip)
                    assert of is not None
                    (one,) = launches(found, rows, 1, length, of, chip)
                    assert (one.cluster, one.grid) == (of.size, of.size * of.total)
                    assert of.size <= one.grid <= max(slots, of.size)
                    assert of.total <= rows
                    assert workspace_elements(found, rows, 1, of, chip) == 2 * found.points * of.total
                    continue
                (one,) = launches(found, rows, 1, length, None, chip)
                assert one.grid <= slots
                assert one.grid * one.run >= rows
                assert one.run == -(-rows // slots)
                assert workspace_elements(found, rows, 1, None, chip) == (
                    2 * found.transform * (found.sections - 1) * one.grid
                )
            back = in_sections(found)
            if found.spread:
                of = sharing(back, 64, 24, chip)
                (both,) = (x.launch for x in gradient_launches(back, 64, 24, length, chip))
                assert (both.cluster, both.grid) == (of.size, of.size * of.total)
                assert both.items == 24 * parts(back, 64, 24, chip) >= of.total
                assert space(back, 64, 24, chip) == (
                    2 * found.points * of.total,
                    1 + of.total * (1 + found.sections),
                )
                continue
            pairs = max(1, chip.multiprocessors * back.kernel.resident // 2)
            elements, _ = space(back, 5000, 1, chip)
            both = [x.launch for x in gradient_launches(back, 5000, 1, length, chip)[::2]]
            assert sum(launch.items for launch in both) == 5000
            assert max(launch.grid for launch in both) <= 2 * pairs
            assert elements == 2 * found.points * max(launch.items for launch in both)
        cut = together(whole, 5000, 1, chip)
        if cut is not None:
            assert whole.whole is not None
            assert cut.size * cut.total <= chip.multiprocessors * whole.whole.resident
            assert 4 * whole.transform * cut.total <= chip.l2_bytes or whole.whole.row
    small = plan(Problem("causal", 4096, "bf16"), name)
    (one,) = launches(small, 64, 768, 4096, None, chip)
    assert one.run == run_of(64 * 768, chip.multiprocessors * small.body.resident)


def test_a_gpu_says_how_wide_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once; the current one, where a device has no number."""
    asked: list[int] = []
    gpus = [{"multi_processor_count": 114, "L2_cache_size": 50 << 20}, {"multi_processor_count": 78}]

    def properties(index: int) -> SimpleNamespace:
        asked.append(index)
        return SimpleNamespace(**gpus[index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(execute, "_as_wide_as", execute._as_wide_as.__wrapped__)
    own = target("sm_90")
    assert chip_of("sm_90", torch.device("cuda", 0)) == own.on(114, 50 << 20)
    assert chip_of("sm_90", torch.device("cuda")) == own.on(78, own.l2_bytes)
    assert asked == [0, 1]
    assert chip_of("sm_90", torch.device("cpu")) == own


def test_where_clusters_are_refused_stages_go_by_themselves() -> None:
    """Once and for all; another refusal, or one of launches without clusters, is an error."""
    found = plan(Problem("causal", 131_072, "bf16"), "sm_90")
    rows = fewest(found)
    launched: list[tuple[str, int]] = []

    class Refusing:
        code = DriverError.CLUSTERS

        def launch(
            self, entry: str, grid: int, block: int, shared: int, params: bytes, cluster: int = 1
        ) -> None:
            launched.append((entry.split("_")[-1], cluster))
            if self.code == DriverError.CLUSTERS and cluster == 1:
                return
            raise DriverError("refused", self.code)

    executable = execute.Executable(found, torch.zeros(1, dtype=torch.uint8))
    u, planes = torch.zeros(rows, 1, 8, dtype=torch.bfloat16), torch.zeros(1)
    assert executable(Refusing(), u, planes, planes).shape == u.shape
    (first, *others) = launched
    assert first == ("whole", 8)
    assert others
    assert {cluster for _, cluster in others} == {1}
    assert {name for name, _ in others} == {"columns1", "rows", "inverse1"}
    launched.clear()
    executable(Refusing(), u, planes, planes)
    assert launched == others
    again = execute.Executable(found, torch.zeros(1, dtype=torch.uint8))
    refusing = Refusing()
    refusing.code = 700
    with pytest.raises(DriverError, match="refused"):
        again(refusing, u, planes, planes)
    assert again(Refusing(), u, planes, planes).shape == u.shape


def test_where_clusters_are_refused_to_several_threads_all_of_them_go_on() -> None:
    """What a call launched counts, not what others have found out meanwhile."""
    found = plan(Problem("causal", 131_072, "bf16"), "sm_90")
    executable = execute.Executable(found, torch.zeros(1, dtype=torch.uint8))
    sizes: list[int] = []

    class Refusing:
        def launch(
            self, entry: str, grid: int, block: int, shared: int, params: bytes, cluster: int = 1
        ) -> None:
            sizes.append(cluster)
            if cluster > 1:
                executable._together = execute._apart  # another thread was refused first
                raise DriverError("refused", DriverError.CLUSTERS)

    u = torch.zeros(fewest(found), 1, 8, dtype=torch.bfloat16)
    assert executable(Refusing(), u, torch.zeros(1), torch.zeros(1)).shape == u.shape
    assert sizes[0] > 1
    assert set(sizes[1:]) == {1}


def test_where_clusters_are_refused_blocks_take_rows_in_sections_by_themselves() -> None:
    """With as many places in the workspace as there are of them then."""
    asked = Problem("causal", 131_072, "bf16")
    found = sections.sectioned(asked, 16_384, lambda p: plan(p, "sm_90"), spread_out=True)
    assert found is not None
    launched: list[tuple[int, int]] = []

    class Refusing:
        def launch(
            self, entry: str, grid: int, block: int, shared: int, params: bytes, cluster: int = 1
        ) -> None:
            launched.append((grid, cluster))
            if cluster > 1:
                raise DriverError("refused", DriverError.CLUSTERS)

    executable = execute.Executable(found, torch.zeros(1, dtype=torch.uint8))
    u, planes = torch.zeros(300, 1, 8, dtype=torch.bfloat16), torch.zeros(1)
    for _ in range(2):
        assert executable(Refusing(), u, planes, planes).shape == u.shape
    many, alone = spread.many(found, target("sm_90")), spread.alone(found, 300)
    assert many.size > 1
    assert launched == [(many.size * many.total, many.size), *2 * [(alone.total, 1)]]
    assert alone.total == 264
    assert workspace_elements(found, 300, 1) == 2 * 131_072 * alone.total
    assert workspace_elements(found, 300, 1, many) == 2 * 131_072 * many.total
    assert peaks_words(found, 300, 1, many) == 1 + 9 * many.total


def test_a_plan_of_before_there_was_one_launch_still_means_what_it_did() -> None:
    found = plan(Problem("causal", 65_536, "bf16"), "sm_90")
    old = replace(found, whole=None)
    assert Plan.from_json(found.to_json()) == found
    assert "whole" not in old.to_json()
    assert Plan.from_json(old.to_json()) == old
    assert together(old, 64, 768) is None


def test_workers_take_runs_only_when_the_chip_is_full_without() -> None:
    found = plan(Problem("causal", 1024, "fp16"), "sm_90")
    kernel = found.kernels[0]
    slots = target("sm_90").multiprocessors * kernel.resident * kernel.items
    assert [launch.run for launch in launches(found, 1, slots, 1024)] == [1]
    (busy,) = launches(found, 64, slots, 1024)
    assert busy.run > 1
    assert busy.grid * busy.kernel.items >= slots, "runs have left multiprocessors idle"


@pytest.mark.parametrize("slots", [1, 132, 528, 660])
def test_a_launch_ends_with_a_wave_that_is_nearly_full(slots: int) -> None:
    """What the last wave leaves idle is little beside what the others do, and so is loading tables."""
    for pieces in (1, slots // 2, slots, slots + 1, 3 * slots, 10 * slots + 7, 49_152, 1_000_003):
        if not pieces:
            continue
        run = run_of(pieces, slots)
        blocks = -(-pieces // run)
        waves = -(-blocks // slots)
        assert 1 <= run <= MAX_RUN
        assert (blocks - 1) * run < pieces  # none without work
        if pieces <= slots:
            assert run == 1  # spread over the chip
        elif slots > 1:
            least = -(-pieces // slots)  # pieces that the busiest slot must do
            assert waves * (run + START) <= 1.35 * least + 1.35


@pytest.mark.parametrize("length", [256, 1024, 2048, 4096, 16_384])
@pytest.mark.parametrize("name", ["sm_75", "sm_86", "sm_90"])
def test_no_worker_counts_beyond_32_bits(name: str, length: int) -> None:
    """Of as many rows as a call may have: the last block, too, takes a whole run."""
    for found in engines(Problem("causal", length, "fp16"), name):
        if found.device_stages:
            continue  # chunk by chunk
        (launch,) = launches(found, MAX_ROWS, 1, 1)
        assert MAX_ROWS <= launch.grid * launch.kernel.items * launch.run < 2**31


@pytest.mark.parametrize(
    "shape", [(1, 3), (5, 2), (64, 17), (64, 192), (64, 384), (33, 768), (64, 768)], ids=str
)
def test_workers_of_a_gradient_fill_whole_waves(shape: tuple[int, int]) -> None:
    """Never longer than one worker for each channel, or as many as fill the chip once; rows enough for each,
    and a worker for each part."""
    batch, channels = shape
    for length in (256, 1024, 2048, 4096, 16_384, 65_536):
        found = backward(Problem("causal", length, "bf16"), "sm_90")
        assert found is not None
        slots = target("sm_90").multiprocessors * found.kernel.resident * found.kernel.items
        shared = parts(found, batch, channels)
        assert 1 <= shared <= max(1, batch // least_share(found))
        (launch, *_) = (x for x in gradient_launches(found, batch, channels, length) if x.side < 0)
        assert launch.parts == shared
        if found.plan.device_stages:
            continue
        rows = -(-channels // found.plan.abreast)
        assert launch.workers == rows * shared
        assert shared == 1 or launch.workers <= WAVES * slots

        def time(count: int, rows: int = rows, slots: int = slots) -> float:
            return -(-rows * count // slots) * (-(-batch // count) + OWN)

        assert time(shared) <= min(time(1), time(max(1, min(slots // rows, batch // least_share(found)))))


@pytest.mark.parametrize(("length", "shared"), [(2048, 2), (4096, 1)])
def test_a_last_wave_of_half_the_chip_is_cut(length: int, shared: int) -> None:
    """384 blocks of two channels' rows, but 768 of one's: 1.5 and 2.9 waves."""
    found = backward(Problem("causal", length, "bf16"), "sm_90")
    assert found is not None
    assert parts(found, 64, 768) == shared


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 7, 64, 641, 65_537, 2**30, 2**30 + 1, 2**31 - 1])
def test_reciprocals_divide_exactly(divisor: int) -> None:
    """As kernels do it (arguments.cuh: channel_of), beside each multiple and at both ends."""
    multiplier, shift = reciprocal(divisor)
    assert 0 < multiplier < 2**32
    assert 0 <= shift < 32
    multiples = {q * divisor for q in (1, 2, 3, 1000, (2**31 - 1) // divisor)}
    for n in {0, 2**31 - 1} | {m + d for m in multiples for d in (-1, 0, 1)}:
        if 0 <= n < 2**31:
            assert (2 * n * multiplier >> 32) >> shift == n // divisor, n
