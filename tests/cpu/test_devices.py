"""Which kernels a convolution loads, where and when: on GPUs that are not there, plans in their place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fftgen import filter_gradient, providers, serving
from fftgen.cache import CacheMissError
from fftgen.conv import Conv
from fftgen.errors import InputError, ToolchainError
from fftgen.gradient import Needed
from fftgen.planner import search
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.gradient_sections import Prepared, in_sections
from fftgen.problem import Problem
from fftgen.providers import JustInTime
from fftgen.targets import target as find_target

WHOLE, HALF = Problem("circular", 512, "bf16"), Problem("causal", 256, "bf16")


class GPUs:
    """Two GPUs of different architectures, and the kernels that were loaded on them: (problem, device)."""

    TARGETS = ("sm_90", "sm_80")
    NAMES = ("GPU A", "GPU B")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = False
        self.loaded: list[tuple[Problem, int]] = []
        self.trained: list[tuple[Problem, int]] = []
        self.named: list[str] = []  # GPUs that plans may have been tuned for
        answers = {
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: self.capturing,
            "get_device_capability": lambda device=0: ((9, 0), (8, 0))[_index(device)],
            "get_device_name": lambda device=0: self.NAMES[_index(device)],
            "get_device_properties": lambda index: _as_planned_for(self.TARGETS[index]),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        for name in ("gradient", "twin", "backward"):
            monkeypatch.setattr(JustInTime, name, lambda _, problem, capability, gpu="": problem)
        monkeypatch.setattr(providers, "build", self.build)
        monkeypatch.setattr(serving, "Loaded", self.load)
        monkeypatch.setattr(serving, "LoadedGradient", self.load)

    def build(self, problem: Problem, target: Any, gpu: str) -> Any:
        self.named.append(gpu)
        return search.plan(problem, target)

    def load(self, built: Any, device: torch.device) -> Any:
        if isinstance(built, Problem):
            self.trained.append((built, device.index))
            return SimpleNamespace()
        self.loaded.append((built.problem, device.index))
        return SimpleNamespace(executable=SimpleNamespace(plan=built))


def _as_planned_for(name: str) -> SimpleNamespace:
    chip = find_target(name)
    return SimpleNamespace(multi_processor_count=chip.multiprocessors, L2_cache_size=chip.l2_bytes)


def _index(device: Any) -> int:
    return device if isinstance(device, int) else torch.device(device).index or 0


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> GPUs:
    return GPUs(monkeypatch)


def conv(problem: Problem = WHOLE) -> Conv:
    return Conv(problem, JustInTime(), "of this test")


# --- before a graph is captured


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("problem", [WHOLE, HALF])
def test_after_warmup_every_call_can_be_captured(problem: Problem, train: bool, gpus: GPUs) -> None:
    """Short calls of a circular convolution as well, which run in the kernels of its half."""
    warm = conv(problem).warmup("cuda:1", train=train)
    served = {warm.served(length, taps) for length in (1, problem.length) for taps in (1, problem.length)}
    assert served == ({WHOLE, HALF} if problem == WHOLE else {HALF})
    gpus.capturing = True
    device = torch.device("cuda", 1)
    for each in served:
        warm.on(device, each)
        if train:
            for ready in (warm.gradient_on, warm.twin_on, warm.backward_on):
                ready(device, each)
    assert sorted(map(str, gpus.loaded)) == sorted(str((p, 1)) for p in served)
    assert len(gpus.trained) == 3 * len(served) * train


def test_a_warmup_for_short_calls_loads_what_they_need(gpus: GPUs) -> None:
    conv().warmup(length=256)
    assert gpus.loaded == [(HALF, 0)]
    gpus.loaded.clear()
    conv().warmup(length=257)
    assert set(gpus.loaded) == {(WHOLE, 0), (HALF, 0)}
    for length in (0, 513):
        with pytest.raises(InputError, match=f"length {length} is outside 1 to 512"):
            conv().warmup(length=length)


@pytest.mark.parametrize(
    ("problem", "said", "options"),
    [
        (WHOLE, r"is not loaded on cuda:0 and .* call conv\.warmup\(\) before", {}),
        (HALF, r"filters of at most 256 and .* call conv\.warmup\(length=256\) before", {"length": 256}),
    ],
)
def test_what_is_missing_in_a_capture_is_named_with_the_call_that_loads_it(
    problem: Problem, said: str, options: dict[str, int], gpus: GPUs
) -> None:
    asked, device = conv(), torch.device("cuda", 0)
    gpus.capturing = True
    with pytest.raises(ToolchainError, match=said):
        asked.on(device, problem)
    with pytest.raises(ToolchainError, match=r"train=True\) before the capture"):
        asked.gradient_on(device, problem)
    gpus.capturing = False
    asked.warmup(train=True, **options)
    gpus.capturing = True
    asked.on(device, problem)
    asked.gradient_on(device, problem)


# --- kernels that a captured call may do without


@pytest.fixture
def on_gpu(gpus: GPUs, monkeypatch: pytest.MonkeyPatch) -> GPUs:
    """Calls that go as far as loaded kernels, which say by what they were asked."""

    def load(built: Any, device: torch.device) -> Any:
        module = SimpleNamespace(on=lambda _: None)
        if isinstance(built, Problem):  # of gradients, or with two outputs
            whole = search.plan(built, gpus.TARGETS[_index(device)])
            return SimpleNamespace(gradient=SimpleNamespace(plan=whole), tables=None, module=module)
        if isinstance(built, Gradient):
            return SimpleNamespace(gradient=built, tables=None, module=module)
        none = SimpleNamespace(planes=None, scale=None)
        return SimpleNamespace(
            executable=SimpleNamespace(plan=built),
            spectrum=lambda *_: none,
            convolve=lambda u, *_: (u, None),
            windowed=lambda found, u, *given: tuple(f"windows of {found.length}" for _ in given[3]),
            apply=lambda *_: "whole",
            both=lambda *_: ("whole", "whole"),
        )

    monkeypatch.setattr(serving, "Loaded", load)
    monkeypatch.setattr(serving, "LoadedGradient", load)
    monkeypatch.setattr(JustInTime, "sectioned", lambda _, plan: plan)
    monkeypatch.setattr(JustInTime, "backward_sectioned", lambda _, plan: in_sections(plan))
    monkeypatch.setattr(filter_gradient, "stream_of", lambda _: 0)
    monkeypatch.setattr(filter_gradient, "backward", lambda found, *_, **__: found.plan)
    monkeypatch.setattr(filter_gradient, "correlate_input", lambda *_, **__: "whole")
    monkeypatch.setattr(filter_gradient.windowed, "correlate_input", lambda found, *_, **__: found)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    return gpus


def on_device(monkeypatch: pytest.MonkeyPatch, index: int) -> torch.device:
    """Tensors seem to lie on a GPU."""
    device = torch.device("cuda", index)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda _: device))
    return device


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("length", "batch", "channels"),
    [(40_960, 64, 768), (49_152, 64, 768), (114_688, 64, 192), (114_688, 4, 64)],
)
def test_a_warmup_is_enough_for_the_capture_of_a_training_step(
    length: int, batch: int, channels: int, index: int, on_gpu: GPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sections of forward and backward pass differ as well, so that their spectra are made again."""
    asked = conv(problem := Problem("causal", length, "bf16"))
    u = torch.empty(1, dtype=torch.bfloat16).expand(batch, channels, length)
    k = torch.empty(1).expand(channels, length)
    device = on_device(monkeypatch, index)
    asked.warmup(device, train=True)
    on_gpu.capturing = True
    forward = asked.serving(u, problem, k, None, True)[0].executable.plan
    planes = torch.empty(1).expand(
        *([forward.sections] * (forward.sections > 1)), channels, 2, forward.transform
    )
    given, needed = (u, k, None, u, u, None), Needed(True, True, True)
    found = filter_gradient.all_on_gpu(asked, given, u, needed, length, (planes, planes))
    there = {plan for plan, _ in asked._backwards_sectioned} | {search.plan(problem, on_gpu.TARGETS[index])}
    assert found is not None
    assert (found.sections, found.transform) in {(p.sections, p.transform) for p in there}


def test_where_spectra_of_sections_cannot_be_made_gradients_go_by_the_whole(
    on_gpu: GPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kernels in sections an artifact, or a cache, may hold those of the backward pass alone."""

    def refused(_: Any, plan: Any) -> Any:
        raise CacheMissError(plan.name)

    monkeypatch.setattr(JustInTime, "sectioned", refused)
    asked = conv(problem := Problem("causal", 65_536, "bf16"))
    u, k = torch.empty(1, dtype=torch.bfloat16).expand(64, 768, 65_536), torch.empty(1).expand(768, 65_536)
    on_device(monkeypatch, 0)
    for _ in range(2):
        found = filter_gradient.all_on_gpu(
            asked, (u, k, None, u, u, None), u, Needed(True, True, True), 65_536
        )
        assert (found.sections, found.transform) == (1, 65_536)  # type: ignore[union-attr]
    assert asked.backward_sections(u.device, problem, 64, 768) is None
    there = Prepared(2, 32_768)  # those that are there need not be made
    assert asked.backward_sections(u.device, problem, 64, 768, True, there) is not None


def test_windows_that_were_loaded_do_not_stand_in_the_way_of_a_captured_step(
    on_gpu: GPUs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation loads those of the convolution; gradients, which need others, then go by the whole."""
    asked = conv(Problem("causal", 65_536, "bf16"))
    u, k = torch.zeros(1, dtype=torch.bfloat16).expand(2, 128, 65_536), torch.zeros(128, 3000)
    device = on_device(monkeypatch, 0)
    asked.warmup(device, train=True)
    assert asked.serving(u, asked.problem, k, None)[1] is not None
    on_gpu.capturing = True
    assert filter_gradient.on_gpu(asked, u, u, None, None, 3000) == "whole"
    first, second = asked.run_both(u, k, None, None, (u, u), None)
    assert first == second
    assert str(first).startswith("windows")  # two passes by the convolution's
    on_gpu.capturing = False
    assert filter_gradient.on_gpu(asked, u, u, None, None, 3000) != "whole"


def test_what_a_capture_does_without_is_not_remembered(on_gpu: GPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_device(monkeypatch, 0)
    for shape in ((1, 300), (8, 64), (4, 768)):
        fresh, asked = (conv(problem := Problem("causal", 65_536, "bf16")) for _ in range(2))
        if plain := asked.sections_of(device, problem, *shape):
            asked.in_sections(device, plain.plan)
        on_gpu.capturing = True
        asked.sections_of(device, problem, *shape, keeping=True)
        on_gpu.capturing = False
        again = asked.sections_of(device, problem, *shape, keeping=True)
        assert again == fresh.sections_of(device, problem, *shape, keeping=True)


# --- spectra that come from elsewhere


def signal(device: int, steps: int = 100) -> Any:
    return SimpleNamespace(device=torch.device("cuda", device), shape=(2, 3, steps))


@pytest.mark.parametrize("problem", [WHOLE, HALF])
def test_a_spectrum_of_another_process_finds_its_kernels(problem: Problem, gpus: GPUs) -> None:
    """On the second GPU of a process as well."""
    for device, target in enumerate(gpus.TARGETS):
        digest = search.plan(problem, target).digest
        asked = conv()
        found = asked.loaded_for(digest, signal(device))
        assert found.executable.plan.problem == problem
        assert (problem, device) in gpus.loaded
        count = len(gpus.loaded)
        assert asked.loaded_for(digest, signal(device)) is found
        assert len(gpus.loaded) == count


def test_nothing_is_loaded_for_a_spectrum_whose_kernels_are_there(gpus: GPUs) -> None:
    asked = conv().warmup(length=256)
    asked.loaded_for(search.plan(HALF, "sm_90").digest, signal(0))
    assert gpus.loaded == [(HALF, 0)]


def test_a_foreign_spectrum_is_refused_once_all_kernels_are_there(gpus: GPUs) -> None:
    asked = conv()
    foreign = search.plan(WHOLE, "sm_80").digest
    gpus.capturing = True
    with pytest.raises(ToolchainError, match=r"call conv\.warmup\(\) before the capture"):
        asked.loaded_for(foreign, signal(0))
    gpus.capturing = False
    with pytest.raises(InputError, match=rf"prepared by another plan \({foreign[:8]}\): prepare it"):
        asked.loaded_for(foreign, signal(0))
    gpus.capturing = True
    with pytest.raises(InputError, match="prepared by another plan"):
        asked.loaded_for(foreign, signal(0))


def test_a_plan_that_was_tuned_is_looked_up_for_the_gpu_it_will_run_on(gpus: GPUs) -> None:
    """Not for the current one, which may be of another name."""
    asked = conv(HALF)
    for device, name in enumerate(gpus.NAMES):
        asked.on(torch.device("cuda", device), HALF)
        assert gpus.named.pop() == name
