"""What the CUDA driver refuses, told as sentences; and what is tried once more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_gpu import Code, Driver

from fftgen import loaded, runtime
from fftgen.errors import DriverError, ToolchainError
from fftgen.on_demand import OnDemand

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        (200, "made by a newer NVRTC than this driver knows: update the driver"),
        (209, "has no code for this GPU: build it with `fftgen build --arch`"),
        (222, "made by a newer NVRTC than this driver knows: update the driver"),
        (999, "see the CUDA driver API, CUresult"),
    ],
)
def test_an_image_that_does_not_load_says_why(
    code: int, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "driver", lambda: Driver("cuModuleLoadData", code))
    with pytest.raises(DriverError, match=rf"loading a kernel failed with .* \({code}\): .*{way_out}") as met:
        runtime.Module(b"", 0, {})
    assert met.value.code == code


@pytest.mark.parametrize("code", [700, 716, 719])
def test_a_launch_after_a_fault_does_not_blame_itself(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("cuLaunchKernel", code)
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    launcher = runtime.StreamLauncher(0, 1, {"kernel": 1})
    with pytest.raises(
        DriverError, match=r"launched before, by whatever library, has failed.*compute-sanitizer"
    ):
        launcher.launch("kernel", 1, 32, 0, b"")


def test_blocks_that_do_not_go_side_by_side_say_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver("cuLaunchKernelEx", 912)
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    monkeypatch.setattr(runtime, "_clustered", lambda *_: None)
    launcher = runtime.StreamLauncher(0, 1, {"kernel": 1})
    with pytest.raises(DriverError, match=r"clusters of 8.*larger share, or call with fewer rows"):
        launcher.launch("kernel", 8, 32, 0, b"", 8)


@pytest.mark.parametrize(
    ("code", "room", "refused"), [(0, 0, True), (912, 1, True), (0, 16, False), (1, 0, False)]
)
def test_room_for_clusters_is_asked_for_before_the_first_launch(
    code: int, room: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that fails would end the capture of a graph. A driver that cannot say is not believed."""
    driver, did = Driver(), []

    def occupancy(function: Any, config: Any) -> tuple[Code, int]:
        did.append("asked")
        return Code(code), room

    def launch(*_: Any) -> tuple[Code]:
        did.append("launched")
        return (Code(0),)

    driver.cuOccupancyMaxActiveClusters, driver.cuLaunchKernelEx = occupancy, launch
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    monkeypatch.setattr(runtime, "_clustered", lambda *_: None)
    launcher = runtime.StreamLauncher(0, 1, {"kernel": 1})
    if refused:
        with pytest.raises(DriverError, match=r"no cluster of kernel can be resident: .*larger share") as met:
            launcher.launch("kernel", 8, 32, 0, b"", 8)
        assert met.value.code == DriverError.CLUSTERS
        assert did == ["asked"]
        return
    for _ in range(3):
        launcher.launch("kernel", 8, 32, 0, b"", 8)
    assert did == ["asked", *["launched"] * 3]
    launcher.launch("kernel", 8, 32, 0, b"", 4)
    assert did[4:] == ["asked", "launched"]


@pytest.mark.parametrize("failing", ["cuModuleLoadData", "cuLaunchKernel"])
def test_a_code_that_the_bindings_do_not_know_is_an_error_of_the_driver(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuda-bindings raise ValueError where a newer driver returns one."""
    driver = Driver()

    def unknown(*_: Any) -> Any:
        raise ValueError("12345 is not a valid CUresult")

    setattr(driver, failing, unknown)
    monkeypatch.setattr(runtime, "driver", lambda: driver)
    with pytest.raises(DriverError, match=r"12345 is not a valid CUresult.*update them"):
        runtime.Module(b"", 0, {"kernel": 0}).on(0).launch("kernel", 1, 32, 0, b"")


@pytest.mark.parametrize(("code", "loads"), [(2, True), (2, False), (209, False)])
def test_pytorch_gives_memory_back_before_loading_is_given_up(
    code: int, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, emptied = Driver("cuModuleLoadData", code), []

    def empty() -> None:
        emptied.append(True)
        if loads:
            driver._failing = ""

    monkeypatch.setattr(runtime, "driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    built: Any = SimpleNamespace(image=b"", entries={"kernel": 0})
    if loads:
        assert list(loaded._module(built, GPU)._functions) == ["kernel"]
    else:
        with pytest.raises(DriverError, match=rf"\({code}\)"):
            loaded._module(built, GPU)
    assert len(emptied) == (code == 2)


def test_only_what_cannot_be_built_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asked for once. What the driver refuses is an error every time, of kernels that others could
    stand in for as well: others would fare no better."""
    for name, answer in (
        ("is_available", True),
        ("current_device", 0),
        ("is_current_stream_capturing", False),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    asked: list[str] = []

    def load(own: str, _: torch.device) -> str:
        asked.append(own)
        if own == "no compiler":
            raise ToolchainError("no NVRTC")
        if own == "no memory":
            raise DriverError("out of memory", int(Code(2)))
        return own

    kernels: OnDemand[str, str] = OnDemand(load, lambda own, _: ToolchainError(own))
    for _ in range(2):
        assert kernels.if_had(GPU, "there") == "there"
        assert kernels.if_had(GPU, "no compiler") is None
        with pytest.raises(DriverError):
            kernels.if_had(GPU, "no memory")
    assert asked == ["there", "no compiler", "no memory", "no memory"]
    with pytest.raises(ToolchainError, match="no NVRTC"):
        kernels.on(GPU, "no compiler")  # asked for by a call that cannot do without
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert kernels.if_had(GPU, "new") is None
    with pytest.raises(ToolchainError, match="new"):
        kernels.on(GPU, "new")
    assert kernels.if_had(GPU, "there") == "there"
    assert "new" not in asked
