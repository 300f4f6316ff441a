"""The convolution object and its operators without a GPU: what is served, what is refused, and how."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference import convolve
from tolerance import check
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fftgen
from fftgen import observed, operators, runtime
from fftgen.check import check_input
from fftgen.conv import Conv, registered
from fftgen.errors import InputError, ToolchainError
from fftgen.loaded import Loaded
from fftgen.planner import search
from fftgen.problem import Problem
from fftgen.spectra import Spectrum, spectrum

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("causal", "circular")


def conv(mode: str = "causal", length: int = 256, dtype: str = "bf16") -> Conv:
    return fftgen.get_conv(length, TORCH[dtype], causal=mode == "causal")


def draw(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


# --- what is served on the CPU: the same result through torch.fft

OPTIONS = [c for n in range(4) for c in itertools.combinations(("in_gate", "out_gate", "skip"), n)]


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "taps"), [(1000, 1000), (300, 1000), (1000, 7), (1, 1), (501, 500)])
def test_cpu_tensors_get_the_convolution(
    mode: str, dtype: str, length: int, taps: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    shape = (3, 2, length)
    u = draw(rng, *shape, dtype=TORCH[dtype])
    k = draw(rng, 2, taps, dtype=torch.float32) * torch.exp(-8 * torch.arange(taps) / taps)
    given = {name: draw(rng, *shape, dtype=TORCH[dtype]) for name in options if name != "skip"}
    if "skip" in options:
        given["skip"] = k[:, 0].sign()
    y = conv(mode, 1000, dtype)(u, k, **given)
    wide = {name: x.double().numpy() for name, x in given.items()}
    check(y.double().numpy(), convolve(u.double(), k, mode=mode, length=1000, **wide), dtype, 2)
    assert y.is_contiguous()
    again = conv(mode, 1000, dtype)(u, conv(mode, 1000, dtype).prepare(k), **given)
    assert torch.equal(again, y)


@pytest.mark.parametrize(("batch", "channels"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_no_rows_give_no_rows(mode: str, batch: int, channels: int) -> None:
    u = torch.empty(batch, channels, 10, dtype=torch.bfloat16)
    k = torch.randn(channels, 4, requires_grad=True)
    y = conv(mode)(u, k, in_gate=u, out_gate=u, skip=torch.ones(channels))
    assert (y.shape, y.dtype) == (u.shape, u.dtype)
    y.sum().backward()
    assert k.grad is not None
    assert not k.grad.any()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "(B, L, H)": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "(H, B, L)": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other step": lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
    "one element off": lambda x: torch.cat([x[..., :1], x], -1)[..., 1:],
    "part of a larger tensor": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "one row for all": lambda x: x[:1, :1].contiguous().expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_any_layout_gives_what_a_contiguous_tensor_gives(
    mode: str, layout: str, rng: np.random.Generator
) -> None:
    u, gate = (LAYOUTS[layout](draw(rng, 2, 3, 200)) for _ in range(2))
    k = LAYOUTS[layout](draw(rng, 1, 3, 60, dtype=torch.float32))[0]
    y = conv(mode)(u, k, in_gate=gate)
    assert torch.equal(y, conv(mode)(u.contiguous(), k.contiguous(), in_gate=gate.contiguous()))
    assert y.is_contiguous()


def test_equal_questions_share_one_object() -> None:
    assert fftgen.get_conv(4096, "bf16") is fftgen.get_conv(4096, torch.bfloat16, causal=False)
    assert fftgen.get_conv(4096, causal=True) is not fftgen.get_conv(4096)


def test_padded_calls_run_as_causal_ones_of_half_the_length() -> None:
    whole, half = Problem("circular", 4096, "bf16"), Problem("causal", 2048, "bf16")
    asked = conv("circular", 4096)
    assert asked.served(2048, 2048) == asked.served(1, 7) == half
    assert asked.served(2049, 1) == asked.served(1, 2049) == whole
    assert conv("causal", 4096).served(7, 7) == Problem("causal", 4096, "bf16")


@pytest.mark.parametrize("mode", MODES)
def test_the_functional_form_finds_its_convolution(mode: str, rng: np.random.Generator) -> None:
    u, k = draw(rng, 2, 3, 1026), draw(rng, 3, 700, dtype=torch.float32)
    y = fftgen.fftconv(u, k, mode=mode)
    exact = convolve(u.double(), k.double(), mode=mode, length=1026)
    check(y.double().numpy(), exact, "bf16", 2)
    longer = draw(rng, 3, 3000, dtype=torch.float32)
    if mode == "causal":  # later taps meet no input
        exact = convolve(u.double(), longer.double(), mode=mode, length=3000)
        check(fftgen.fftconv(u, longer, mode=mode).double().numpy(), exact, "bf16", 2)
    else:
        with pytest.raises(InputError, match="k has 3000 taps, this convolution takes 1 to 1026"):
            fftgen.fftconv(u, longer, mode=mode)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "seqlen must be at least 1, got 0"),
        ((-5,), "seqlen must be at least 1, got -5"),
        ((4_194_305,), r"seqlen 4194305 exceeds the largest transform \(4194304\): split"),
        ((2.5,), r"seqlen must be an int, got 2\.5"),
        ((256, torch.float64), "dtype 'float64' is not supported: choose bf16"),
        ((256, "int8"), "dtype 'int8' is not supported: choose bf16"),
    ],
)
def test_convolutions_that_are_not_made(arguments: tuple[Any, ...], message: str) -> None:
    for make in (fftgen.get_conv, fftgen.plan, fftgen.build):
        with pytest.raises(InputError, match=message):
            make(*arguments)


def test_targets_that_there_are_not() -> None:
    for ask in (
        lambda: fftgen.plan(256, target="sm_42"),
        lambda: fftgen.build(256, targets=["sm_42"]),
        lambda: conv().plan("sm_42"),
    ):
        with pytest.raises(InputError, match="target 'sm_42' is not supported: choose from sm_75"):
            ask()


@pytest.mark.parametrize("causal", ["no", 1, torch.tensor([True, False]), torch.tensor(True)])
def test_a_mode_is_true_or_false(causal: Any, tmp_path: Path) -> None:
    for ask in (
        lambda: fftgen.get_conv(256, causal=causal),
        lambda: fftgen.plan(256, causal=causal),
        lambda: fftgen.build(256, causal=causal, path=tmp_path / "a.fftgen"),
        lambda: fftgen.load(tmp_path / "a.fftgen", causal=causal),
    ):
        with pytest.raises(InputError, match="causal must be True or False, got"):
            ask()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (1, r"path must be that of a file, got 1 \(int\)"),
        (b"a.fftgen", r"path must be that of a file, got b'a.fftgen' \(bytes\)"),
        ("", "path '' names no file"),
        ("a\0b.fftgen", r"path 'a\\x00b.fftgen' names no file: one or more characters, none of them NUL"),
    ],
)
def test_paths_that_name_no_file(path: Any, message: str) -> None:
    for ask in (fftgen.load, lambda path: fftgen.build(256, path=path)):
        with pytest.raises(InputError, match=message):
            ask(path)


@pytest.mark.parametrize("engine", ["", "cufft", [], 1])
def test_engines_that_there_are_not(engine: Any) -> None:
    for ask in (fftgen.plan, fftgen.build):
        with pytest.raises(InputError, match=r"engine .* is not known: choose from mma, wmma, simt"):
            ask(256, engine=engine)


@pytest.mark.parametrize("device", ["gpu", -1, 10**30, []])
def test_devices_that_pytorch_does_not_know(device: Any) -> None:
    with pytest.raises(InputError, match="is not known to PyTorch: take 'cuda' or 'cuda:0'"):
        conv().warmup(device)


U, K = torch.zeros(2, 3, 100, dtype=torch.bfloat16), torch.zeros(3, 50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": U[0, 0]}, r"u must be \(\.\.\., channels, length\), got \(100\): u\[None\] for one channel"),
        ({"u": U.half()}, r"u is torch.float16, this convolution was made for torch.bfloat16"),
        ({"u": U.int()}, r"u is torch.int32, .* if integers are meant"),
        ({"u": [1.0]}, "u must be a torch.Tensor, got list"),
        ({"u": U[..., :0]}, "u has length 0"),
        ({"u": torch.zeros(1, 3, 257).bfloat16()}, r"length 257, .* at most 256: use fftgen.get_conv\(257"),
        ({"k": K[0]}, r"k must be \(channels, taps\), got \(50\)"),
        ({"k": K[None, None]}, r"k must be .*\(filters, channels, taps\), got \(1, 1, 3, 50\): per_row"),
        ({"k": K.long()}, r"k must be real floating point, got torch.int64"),
        ({"k": K.cfloat()}, r"k must be real floating point, got torch.complex64"),
        ({"k": K[:2]}, "k has 2 channels, u has 3"),
        ({"k": K[:, :0]}, "k has 0 taps, this convolution takes 1 to 256"),
        ({"k": torch.zeros(3, 257)}, "k has 257 taps, this convolution takes 1 to 256: cut the filter"),
        ({"k": K.to("meta")}, r"k is on meta, u on cpu: k\.to\(u\.device\)"),
        ({"k": "filter"}, "k must be a torch.Tensor, got str"),
        ({"in_gate": U[:1]}, r"in_gate must have u's shape \(2, 3, 100\), got \(1, 3, 100\)"),
        ({"out_gate": U.float()}, "out_gate is torch.float32, u is torch.bfloat16"),
        ({"out_gate": U.to("meta")}, "out_gate is on meta, u on cpu"),
        ({"skip": torch.zeros(3, 1)}, r"skip must be \(channels,\) = \(3\), got \(3, 1\): skip\.flatten"),
        ({"skip": torch.zeros(2)}, r"skip must be \(channels,\) = \(3\), got \(2\)"),
        ({"skip": torch.zeros(3, dtype=torch.int32)}, "skip must be floating point, got torch.int32"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_arguments_that_do_not_fit_are_named(mode: str, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"u": U, "k": K, **change}
    asked = conv(mode)
    with pytest.raises(InputError, match=message):
        asked(arguments.pop("u"), arguments.pop("k"), **arguments)
    of_a_call = ("on meta", "k has 2", "per_row")
    if set(change) == {"k"} and not any(words in message for words in of_a_call):
        with pytest.raises(InputError, match=message):
            asked.prepare(change["k"])


def test_a_spectrum_is_of_one_filter_per_channel() -> None:
    for k in (K[None], K[None, None]):
        shape = re.escape(str(tuple(k.shape)))
        with pytest.raises(InputError, match=rf"is prepared of filters \(channels, taps\) .*\[{shape}\]"):
            conv().prepare(k)


def test_a_gpu_takes_the_storage_type_only() -> None:
    """A CPU also takes float32 and float64 (test_operators.py)."""
    for x in (U.float(), U.double(), U.half()):
        assert check_input(Problem("causal", 256, "fp16"), x) is x
        with (
            FakeTensorMode(),
            pytest.raises(
                InputError, match=rf"u is {x.dtype}, this convolution was made for torch.bfloat16: u\.to"
            ),
        ):
            conv()(torch.empty(U.shape, dtype=x.dtype, device="cuda"), torch.empty(K.shape, device="cuda"))


def test_a_filter_longer_than_the_input_is_fine(rng: np.random.Generator) -> None:
    u, k = draw(rng, 1, 2, 9), draw(rng, 2, 256, dtype=torch.float32)
    for mode in MODES:
        exact = convolve(u.double(), k.double(), mode=mode, length=256)
        check(conv(mode)(u, k).double().numpy(), exact, "bf16", 2)


def test_a_prepared_filter_keeps_its_values_when_the_parameter_changes(rng: np.random.Generator) -> None:
    k = torch.nn.Parameter(draw(rng, 3, 50, dtype=torch.float32))
    u = draw(rng, 2, 3, 100)
    prepared = conv().prepare(k)
    before = conv()(u, prepared)
    with torch.no_grad():
        k.zero_()
    assert torch.equal(conv()(u, prepared), before)
    assert before.any()


@pytest.mark.filterwarnings("ignore")  # of prototypes
def test_tensors_that_are_not_laid_out_in_strides_are_refused() -> None:
    conv = fftgen.get_conv(64, causal=True)
    u, k = torch.ones(2, 3, 60).bfloat16(), torch.ones(3, 60)
    cases: dict[str, tuple[Any, ...]] = {
        r"u is torch\.sparse_coo: u\.to_dense": (u.to_sparse(), k),
        r"k is torch\.sparse_csr: k\.to_dense": (u, k.to_sparse_csr()),
        "u is a nested tensor: torch.nested.to_padded": (torch.nested.nested_tensor([u[0], u[0, :, :9]]), k),
    }
    for message, given in cases.items():
        for call in (conv, fftgen.fftconv):
            for _ in range(2):  # before and after a call of these shapes is known
                with pytest.raises(InputError, match=message):
                    call(*given)
                call(u, k)
    with pytest.raises(InputError, match=r"in_gate is torch\.sparse_coo"):
        conv(u, k, in_gate=u.to_sparse())
    quantized = torch.quantize_per_tensor(k, 0.1, 0, torch.qint8)
    with pytest.raises(InputError, match=r"k is torch\.qint8, quantized: k\.dequantize"):
        conv(u, quantized)


def test_a_spectrum_that_does_not_belong_here_is_refused() -> None:
    prepared = conv(length=512).prepare(torch.ones(3, 400))
    with pytest.raises(
        InputError, match=r"a filter of 400 taps, this convolution takes at most 256: prepare"
    ):
        conv()(U, prepared)
    with pytest.raises(InputError, match="the spectrum has 2 channels, u has 3"):
        conv()(U, conv().prepare(K[:2]))
    other = Spectrum(prepared.planes.to("meta"), prepared.scale, prepared.digest, 4)
    with pytest.raises(InputError, match="the spectrum is on meta, u on cpu: prepare it there"):
        conv()(U, other)
    kernels = spectrum(search.plan(Problem("causal", 256, "bf16"), "sm_90"), K)
    with pytest.raises(InputError, match="prepared for another device than cpu"):
        conv()(U, kernels)
    with pytest.raises(InputError, match="length 257 is outside 1 to 256"):
        conv().prepare(K, length=257)
    for foreign in (conv("circular"), conv(dtype="fp16"), conv(length=512)):
        with pytest.raises(InputError, match=r"prepared by another convolution .*: prepare it with this"):
            conv()(U, foreign.prepare(K))
    short = conv("circular", 512).prepare(K, length=100)  # by kernels of half of it, for all that these take
    assert conv("circular", 512)(torch.zeros(1, 3, 256).bfloat16(), short).shape == (1, 3, 256)
    with pytest.raises(
        InputError, match=r"sequences of at most 256, u has 257: conv.prepare\(k, length=257\)"
    ):
        conv("circular", 512)(torch.zeros(1, 3, 257).bfloat16(), short)


def test_on_a_gpu_a_spectrum_finds_the_kernels_of_its_plan_and_no_others() -> None:
    """What the operator does with the digest, with plans in the place of loaded kernels."""
    asked = Conv(Problem("circular", 512, "bf16"), conv()._provider, "of this test")
    there = {p: search.plan(p, "sm_90") for p in (asked.problem, asked.served(1, 1))}
    for problem, plan in there.items():
        kernels: Any = SimpleNamespace(executable=SimpleNamespace(plan=plan))
        asked._loaded[problem, U.device] = kernels
    for problem, plan in there.items():
        found: Loaded = asked.loaded_for(plan.digest, U)
        assert found.executable.plan.problem == problem
    foreign = search.plan(Problem("circular", 512, "bf16"), "sm_80")
    with pytest.raises(InputError, match=rf"prepared by another plan \({foreign.digest[:8]}\): prepare it"):
        asked.loaded_for(foreign.digest, U)
    half = there[asked.served(1, 1)]
    with pytest.raises(InputError, match=r"at most 256, u has 300: conv\.prepare\(k, length=300\)"):
        asked.loaded_for(half.digest, torch.zeros(1, 3, 300))


def test_an_operator_of_a_convolution_that_is_not_loaded_names_the_way_out() -> None:
    artifact, *malformed = "artifact:0123:causal-256-bf16", "causal-x-bf16", "causal-256", ""
    for handle in (artifact, *malformed):
        with pytest.raises(
            InputError, match=rf"no convolution is loaded under '{handle}': call fftgen\.load"
        ):
            registered(handle)  # what the operators ask for on a GPU
    for handle in malformed:
        with pytest.raises(
            InputError, match=rf"no convolution is loaded under '{handle}': call fftgen\.load"
        ):
            torch.ops.fftgen.conv(U, K, None, None, None, None, handle)
    made = torch.ops.fftgen.conv(U + 1, K + 1, None, None, None, None, "causal-200-bf16")  # from the handle
    assert torch.equal(made, conv(length=200)(U + 1, K + 1))
    # A CPU needs nothing of an artifact but what its handle says.
    assert torch.equal(torch.ops.fftgen.conv(U + 1, K + 1, None, None, None, None, artifact), made)


# --- operators


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", MODES)
def test_fake_tensors_get_shape_dtype_device_and_strides_of_the_result(mode: str, device: str) -> None:
    """No GPU is asked for: this is how graphs are traced and exported on a machine without one."""
    with FakeTensorMode():
        u = torch.empty(3, 2, 200, dtype=torch.bfloat16, device=device).transpose(0, 1)
        y = conv(mode)(u, torch.empty(3, 50, device=device), out_gate=u)
        assert (y.shape, y.dtype, y.device.type) == ((2, 3, 200), torch.bfloat16, device)
        assert y.is_contiguous()
        planes, scale = torch.empty(3, 2, 256, device=device), torch.empty(3, 2, device=device)
        y = torch.ops.fftgen.conv_prepared(u, planes, scale, None, None, None, conv(mode).handle, "digest")
        assert (y.shape, y.device.type, y.is_contiguous()) == ((2, 3, 200), device, True)


def test_a_spectrum_of_fake_tensors_is_one_of_taps_or_refused() -> None:
    with FakeTensorMode():
        made = conv().prepare(torch.empty(3, 50), k_rev=torch.empty(3, 40))
        assert made.planes.shape == (3, 2, 50)
        u = torch.empty(2, 3, 200, dtype=torch.bfloat16)
        assert conv()(u, made).shape == u.shape
        with pytest.raises(InputError, match=r"k is a fake tensor.*: prepare it before .* conv\(u, k\)"):
            conv().prepare(torch.empty(3, 50, device="cuda"))


def test_gradients_through_the_kernels_are_recorded_and_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a call hands to autograd, which itself needs the GPU that these tensors only name."""
    handed: list[tuple[Any, ...]] = []

    def hand(*inputs: Any) -> Tensor:
        handed.append(inputs)
        return torch.empty_like(inputs[0])

    monkeypatch.setattr(operators, "conv", hand)
    with FakeTensorMode():
        u = torch.empty(2, 3, 200, dtype=torch.bfloat16, device="cuda")
        k, skip = torch.empty(3, 50, device="cuda"), torch.empty(3, device="cuda")
        ready = {"u": u, "k": k, "k_rev": k, "in_gate": u, "out_gate": u, "skip": skip}
        for name, x in ready.items():
            wanted = torch.empty(x.shape, dtype=x.dtype, device="cuda", requires_grad=True)
            given = {**ready, name: wanted}
            handed.clear()
            conv()(given.pop("u"), given.pop("k"), **given)
            ((*inputs, handle),) = handed
            assert handle == conv().handle
            assert observed.recorded(*inputs)
            assert [x is not None and x.requires_grad for x in inputs] == [n == name for n in ready]
        monkeypatch.undo()
        with torch.no_grad():
            asked = torch.empty(3, 50, device="cuda", requires_grad=True)
            assert conv()(u, asked, k_rev=asked).shape == u.shape


def test_gradients_on_the_cpu_are_those_of_the_definition() -> None:
    """In double through the same code: the analytic gradient against differences."""
    from fftgen import eager

    torch.manual_seed(0)
    shapes = ((2, 3, 12), (3, 9), (2, 3, 12), (2, 3, 12), (3,))
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    for mode in MODES:

        def call(u: Tensor, k: Tensor, a: Tensor, b: Tensor, d: Tensor, mode: str = mode) -> Tensor:
            return eager.convolve(u, k, mode=mode, length=16, in_gate=a, out_gate=b, skip=d)

        assert torch.autograd.gradcheck(call, tensors)


@pytest.mark.parametrize("gates", [False, True])
def test_the_operators_hold_what_torch_library_asks(gates: bool, rng: np.random.Generator) -> None:
    u = draw(rng, 2, 3, 64)
    gate, skip = (u, torch.ones(3)) if gates else (None, None)
    arguments = (u, draw(rng, 3, 9, dtype=torch.float32), None, gate, gate, skip, "causal-64-bf16")
    outcome = torch.library.opcheck(torch.ops.fftgen.conv, arguments)
    assert set(outcome.values()) == {"SUCCESS"}


# --- parts that are missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_way_out_is_named() -> None:
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ToolchainError, match=r"no GPU that PyTorch can use: .*CPU tensors"):
            conv().warmup(device)
    with pytest.raises(
        ToolchainError, match=r"no GPU to plan for: name a target, e\.g\. conv\.plan\('sm_90'\)"
    ):
        conv().plan()
    assert conv().plan("sm_90") == search.plan(Problem("causal", 256, "bf16"), "sm_90")
    assert conv().warmup("cpu") is conv()


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (None, r"cuda-bindings is not installed: pip install 'cuda-bindings>=12\.9' \(CPU tensors need none"),
        (
            "no library",
            r"no NVIDIA driver on this machine: install one, or use CPU tensors or `fftgen verify`",
        ),
        ("no device", r"the NVIDIA driver does not start \(CUDA_ERROR_NO_DEVICE\): is a GPU present"),
    ],
)
def test_a_missing_driver_is_told_with_the_way_out(
    bindings: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Code:
        CUDA_SUCCESS = 0
        name = "CUDA_ERROR_NO_DEVICE"

    class Driver:
        CUresult = Code

        @staticmethod
        def cuInit(_: int) -> tuple[Code]:  # noqa: N802
            if bindings == "no library":
                raise RuntimeError("Failed to dlopen libcuda.so.1")
            return (Code(),)

    stand_in = None if bindings is None else SimpleNamespace(driver=Driver)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", stand_in)
    monkeypatch.setattr(runtime, "driver", runtime.driver.__wrapped__)  # uncached
    with pytest.raises(ToolchainError, match=message):
        runtime.Module(b"", 0, {})


def test_messages_have_one_form() -> None:
    """A refusal names what was passed and ends in a way out, not in a stack of library errors."""
    with pytest.raises(InputError) as refused:
        conv()(U, K.long())
    assert re.fullmatch(r"k must be real floating point, got torch\.int64: k\.float\(\)", str(refused.value))
    assert refused.value.__cause__ is None
