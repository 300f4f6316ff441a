"""Ring 5: the kernels on a GPU. Skipped, with the reason, where there is none.

References come from tests/reference.py, bounds from tests/tolerance.py, as in the simulator's tests.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradients
import numpy as np
import pytest
import torch
from command_line import why_not
from reference import convolve
from tolerance import check

import fftgen
from fftgen import gradient_accuracy
from fftgen.bench.backend import CudaBackend
from fftgen.bench.proof import check_agreement, check_portfolio
from fftgen.cache import Cache
from fftgen.conv import Conv
from fftgen.dtypes import dtype as find_dtype
from fftgen.errors import ToolchainError
from fftgen.execute import Executable
from fftgen.loaded import Loaded
from fftgen.pipeline import build_plan
from fftgen.planner.launch import launches, together
from fftgen.planner.whole import cluster_kernels, fewest
from fftgen.portfolio import PROBLEMS
from fftgen.problem import Problem
from fftgen.runtime import driver
from fftgen.targets import target


def no_gpu() -> str:
    """Why nothing here can run, or ""."""
    try:
        driver()
    except ToolchainError as error:
        return str(error)
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU"
    return why_not()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(no_gpu()), reason=no_gpu() or "there is a GPU")]

TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ids = {"ids": lambda p: f"{p.mode}-{p.length}-{p.dtype}" if isinstance(p, Problem) else str(p)}


def needs(dtype: str) -> None:
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < find_dtype(dtype).capability:
        pytest.skip(f"compute capability {major}.{minor} has no {dtype} matrix instruction")


def get(problem: Problem) -> Conv:
    needs(problem.dtype)
    return fftgen.get_conv(problem.length, problem.dtype, causal=problem.causal)


def arguments(
    problem: Problem,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    taps: int,
    options: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """u, k and options as ``Conv.__call__`` names them, on the CPU."""

    def noise(*size: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(size))

    found = {
        "u": noise(*shape).to(TORCH[problem.dtype]),
        "k": (noise(shape[1], taps) * torch.exp(-8 * torch.arange(taps) / taps)).float(),
    }
    for name in ("in_gate", "out_gate"):
        if name in options:
            found[name] = noise(*shape).to(TORCH[problem.dtype])
    if "skip" in options:
        found["skip"] = torch.sign(found["k"][:, 0]) * (0.5 + noise(shape[1]).abs().float())
    return found


def on_gpu(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x.cuda() for name, x in given.items()}


def hold(problem: Problem, conv: Conv, given: dict[str, torch.Tensor], out: torch.Tensor) -> None:
    """The result against float64."""
    wide = {name: x.double().numpy() for name, x in given.items()}
    exact = convolve(wide.pop("u"), wide.pop("k"), mode=problem.mode, length=problem.length, **wide)
    plan = conv.plan()
    check(out.double().cpu().numpy(), exact, problem.dtype, plan.order, plan.compute_format)


@pytest.mark.parametrize("problem", PROBLEMS, **ids)
def test_the_portfolio_is_right(problem: Problem, rng: np.random.Generator) -> None:
    needs(problem.dtype)
    found = check_portfolio(problem, CudaBackend(), int(rng.integers(2**31)))
    assert found["status"] == "passed", found


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.length <= 4096], **ids)
def test_the_chip_agrees_with_the_simulator(problem: Problem, rng: np.random.Generator) -> None:
    needs(problem.dtype)
    found = check_agreement(problem, CudaBackend(), int(rng.integers(2**31)))
    assert found["status"] == "passed", found


OPTIONS = [c for n in range(4) for c in itertools.combinations(("in_gate", "out_gate", "skip"), n)]


@pytest.mark.parametrize("options", OPTIONS, ids="+".join)
@pytest.mark.parametrize(
    "problem",
    [Problem("causal", 4096, "bf16"), Problem("circular", 1024, "fp16"), Problem("causal", 5000, "fp32")],
    **ids,
)
def test_every_combination_of_options(
    problem: Problem, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    conv = get(problem)
    given = arguments(problem, rng, (3, 5, problem.length), problem.length, options)
    hold(problem, conv, given, conv(**on_gpu(given)))


@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((1, 1, 4096), 4096),
        ((64, 96, 4096), 4096),
        ((5, 3, 4095), 17),
        ((2, 7, 1000), 4096),
        ((1, 300, 1), 1),
        ((33, 2, 2049), 2048),
    ],
)
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_several_shapes(mode: str, shape: tuple[int, int, int], taps: int, rng: np.random.Generator) -> None:
    problem = Problem(mode, 4096, "fp16")
    conv = get(problem)
    given = arguments(problem, rng, shape, taps, ("in_gate", "out_gate"))
    hold(problem, conv, given, conv(**on_gpu(given)))


@pytest.mark.parametrize("options", [(), ("in_gate", "out_gate")], ids=["plain", "gated"])
@pytest.mark.parametrize(("channels", "length"), [(96, 1024), (192, 256)])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_rows_on_their_way_give_the_bits_of_rows_that_are_waited_for(
    mode: str, channels: int, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """In large calls a warp takes several rows, and has the next ones brought while it computes."""
    problem = Problem(mode, length, "bf16")
    conv = get(problem)

    def in_a_row(batch: int) -> int:
        return max(launch.run for launch in launches(conv.plan(), batch, channels, length))

    few, many = 8, next(b for b in itertools.count(64, 2) if in_a_row(b) > 1)
    assert in_a_row(few) == 1
    given = arguments(problem, rng, (many, channels, length), length, options)
    moved = on_gpu(given)
    k = conv.prepare(moved.pop("k"))
    out = conv(k=k, **moved)
    parts = [{name: x[i : i + few] for name, x in moved.items()} for i in range(0, many, few)]
    assert torch.equal(out, torch.cat([conv(k=k, **part) for part in parts]))
    hold(problem, conv, given, out)


def test_a_long_transform_in_many_chunks(rng: np.random.Generator) -> None:
    length = 786_432  # more than sections make up
    problem = Problem("causal", length, "bf16")
    conv = get(problem)
    given = arguments(problem, rng, (5, 33, length), length, ("in_gate", "skip"))
    hold(problem, conv, given, conv(**on_gpu(given)))


# Of an H200, from 131 072 on a cluster to a row, forwards, and back from 245 760 on.
IN_SECTIONS = [
    (49_152, "fp16"),
    (65_536, "bf16"),
    (81_920, "bf16"),
    (98_304, "bf16"),
    (131_072, "fp16"),
    (262_144, "bf16"),
    (327_680, "bf16"),
]


@pytest.mark.parametrize("options", [(), ("in_gate", "out_gate", "skip")], ids=["plain", "gated"])
@pytest.mark.parametrize(("length", "dtype"), IN_SECTIONS)
def test_many_rows_go_in_sections(
    length: int, dtype: str, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Turns of blocks over rows, the last of them with few; the same once more, and in part.

    Among the filters are some that begin quietly, whose results are at powers of two far from the sections'.
    """
    problem = Problem("causal", length, dtype)
    conv = get(problem)
    given = arguments(problem, rng, (1, 500, length), length, options)
    given["k"][::16, : length // 4] *= 1e-6
    moved = on_gpu(given)
    gated = "out_gate" in options
    cut = conv.sections_of(moved["u"].device, problem, 1, 500, gated=gated)
    if cut is None:
        pytest.skip("no sections that take less than one transform of everything")
    out = conv(**moved)
    hold(problem, conv, given, out)
    assert torch.equal(conv(**moved), out)
    made = conv.prepare(moved.pop("k"))
    hold(problem, conv, given, conv(k=made, **moved))
    short = {name: x if name == "skip" else x[..., : length - 4097] for name, x in given.items()}
    hold(problem, conv, short, conv(**on_gpu(short)))


@pytest.mark.parametrize("gates", [(), ("in_gate", "out_gate")], ids=["plain", "gated"])
@pytest.mark.parametrize(
    ("mode", "length", "dtype"),
    [
        ("causal", 65_536, "bf16"),
        ("causal", 49_152, "fp16"),
        ("circular", 98_304, "bf16"),
        ("causal", 131_072, "bf16"),
        ("circular", 163_840, "fp16"),
    ],
)
def test_many_rows_go_in_sections_both_ways(
    mode: str, length: int, dtype: str, gates: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Of filters that act backwards as well, or around a circle; prepared, too."""
    problem = Problem(mode, length, dtype)
    conv, shape = get(problem), (2, 150, length)
    options = ("k_rev", *gates)
    given = gradients.draw(rng, shape, length, options, TORCH[dtype])
    exact = gradients.composite(**given, mode=mode, length=length).detach().numpy()
    moved = on_gpu({name: x.detach() for name, x in given.items()})
    cut = conv.sections_of(moved["u"].device, problem, *shape[:2], back=True, gated=bool(gates))
    if cut is None:
        pytest.skip("no sections that take less than one transform of everything")
    kind = (dtype, cut.plan.order, cut.plan.compute_format)
    out = conv(**moved)
    check(out.double().cpu().numpy(), exact, *kind)
    assert torch.equal(conv(**moved), out)
    made = conv.prepare(moved.pop("k"), k_rev=moved.pop("k_rev"))
    check(conv(k=made, **moved).double().cpu().numpy(), exact, *kind)


@pytest.mark.parametrize("options", [(), ("in_gate", "out_gate")], ids=["plain", "gated"])
@pytest.mark.parametrize("length", [65_536, 131_072, 262_144, 524_288, 1 << 20])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_one_launch_of_a_call_gives_what_a_launch_for_each_stage_does(
    mode: str, length: int, options: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Enough rows for several turns of every cluster, and few enough for larger clusters.

    Bit for bit where rows share a transform. Else strips have powers of their own, and where fp16 loses
    digits of small numbers the results differ by less than their rounding.
    """
    problem = Problem(mode, length, "bf16")
    conv = get(problem)
    plan = conv.plan()
    if plan.whole is None:
        pytest.skip(f"{plan.target} has no launch of all stages for {length}")
    for items in (fewest(plan), max(fewest(plan), 5 * 65_536 * 132 // length)):
        given = on_gpu(arguments(problem, rng, (items * plan.rows_per_item, 1, length), length, options))
        k = conv.prepare(given.pop("k"))
        loaded = conv.loaded_for(k.digest, given["u"])
        apart = Executable(plan, loaded.executable.tables, lambda *_: None)
        stream = loaded.module.on(torch.cuda.current_stream().cuda_stream)
        gates = (given.get(name) for name in ("in_gate", "out_gate"))
        one = conv(given["u"], k, **{name: x for name, x in given.items() if name != "u"})
        other = apart(stream, given["u"], k.planes, k.scale, *gates)
        assert torch.equal(one, other) or mode == "causal"
        assert (one.double() - other.double()).norm() < 1e-3 * other.double().norm()


@pytest.mark.parametrize("length", [65_536, 131_072, 262_144])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_rows_in_shared_memory_of_clusters_give_the_bits_of_those_in_the_l2(
    mode: str, length: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Every variant that ``fftgen tune`` tries, with enough rows for several turns of every cluster."""
    problem = Problem(mode, length, "bf16")
    conv = get(problem)
    plan = conv.plan()
    kernels = cluster_kernels(plan, target(plan.target))
    if not kernels:
        pytest.skip(f"no cluster of {plan.target} holds {length} points")
    items = 5 * 65_536 * 132 // length + 1
    given = on_gpu(arguments(problem, rng, (items * plan.rows_per_item, 1, length), length, ("out_gate",)))
    k = conv.prepare(given["k"])
    expected = conv(given["u"], k, out_gate=given["out_gate"])
    for kernel in kernels:
        held = replace(plan, whole=kernel)
        assert together(held, len(given["u"]), 1) is not None
        loaded = Loaded(build_plan(held, Cache(tmp_path)), given["u"].device)
        assert torch.equal(loaded.apply(given["u"], k.planes, k.scale, None, given["out_gate"]), expected)


@pytest.mark.parametrize("offset", [1, 8])
def test_views_are_read_where_they_are(offset: int, rng: np.random.Generator) -> None:
    problem = Problem("causal", 2048, "fp16")
    conv = get(problem)
    given = arguments(problem, rng, (4, 6, 2048), 2048)
    moved = on_gpu(given)
    u = moved["u"][:, ::2, offset:-3]
    out = conv(u, moved["k"][:3])
    cut = {"u": given["u"][:, ::2, offset:-3], "k": given["k"][:3]}
    hold(problem, conv, cut, out)
    assert out.is_contiguous()


@pytest.mark.parametrize(
    "problem", [Problem("causal", 4096, "fp16"), Problem("causal", 65_536, "fp16")], **ids
)
def test_work_runs_on_the_current_stream(problem: Problem, rng: np.random.Generator) -> None:
    """A stream that is held back for long holds the result back, too, and another stream is not touched."""
    conv = get(problem)
    given = arguments(problem, rng, (2, 4, problem.length), problem.length)
    moved = on_gpu(given)
    spectrum = conv.prepare(moved["k"])
    conv(moved["u"], spectrum)
    torch.cuda.synchronize()
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    late = torch.zeros_like(moved["u"])
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        cuda._sleep(200_000_000)  # about 0.1 s
        late.copy_(moved["u"])  # queued behind the sleep: a kernel elsewhere would read zeros
        out = conv(late, spectrum)
        done = stream.record_event()
    assert not done.query(), "the call waited for the device"
    assert torch.cuda.current_stream().query(), "work went to another stream"
    done.synchronize()
    hold(problem, conv, given, out)


def test_a_call_does_not_synchronise(rng: np.random.Generator) -> None:
    problem = Problem("circular", 4096, "fp16")
    conv = get(problem)
    moved = on_gpu(arguments(problem, rng, (2, 4, 4096), 4096, ("in_gate",)))
    conv(**moved)
    torch.cuda.set_sync_debug_mode("error")
    try:
        conv(**moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "problem",
    [Problem("causal", 1024, "fp16"), Problem("circular", 4096, "fp16"), Problem("causal", 65_536, "fp16")],
    **ids,
)
def test_a_graph_is_captured_after_warmup_and_replays_on_new_inputs(
    problem: Problem, rng: np.random.Generator
) -> None:
    conv = get(problem).warmup()
    shape = (3 if problem.length < 65_536 else 50, 4, problem.length)  # all stages by one launch
    first = on_gpu(arguments(problem, rng, shape, problem.length, ("out_gate",)))
    spectrum = conv.prepare(first["k"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = conv(first["u"], spectrum, out_gate=first["out_gate"])
    for _ in range(2):
        given = arguments(problem, rng, shape, problem.length, ("out_gate",))
        given["k"] = first["k"].cpu()
        for name in ("u", "out_gate"):
            first[name].copy_(given[name])
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        hold(problem, conv, given, out)


def test_a_capture_without_warmup_is_refused(tmp_path: Any, rng: np.random.Generator) -> None:
    needs("fp16")
    file = fftgen.build(512, "fp16", causal=True, path=tmp_path / "x.fftgen")
    conv = fftgen.load(file.path)
    given = on_gpu(arguments(conv.problem, rng, (1, 1, 512), 512))
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(ToolchainError, match=r"call conv\.warmup\(\) before the capture"),
        torch.cuda.graph(graph),
    ):
        conv(given["u"], given["k"])
    torch.cuda.synchronize()


def test_an_artifact_gives_what_the_compiler_gives(tmp_path: Any, rng: np.random.Generator) -> None:
    problem = Problem("causal", 1024, "fp16")
    conv = get(problem)
    given = on_gpu(arguments(problem, rng, (2, 3, 1024), 1024, ("skip",)))
    file = fftgen.build(1024, "fp16", causal=True, path=tmp_path / "x.fftgen")
    assert torch.equal(fftgen.load(file.path, sha256=file.sha256)(**given), conv(**given))


def test_rows_do_not_depend_on_their_place_in_the_batch(rng: np.random.Generator) -> None:
    """Bit for bit: no row sees another one (causal transforms hold one row each)."""
    problem = Problem("causal", 4096, "fp16")
    conv = get(problem)
    moved = on_gpu(arguments(problem, rng, (8, 4, 4096), 4096))
    order = torch.from_numpy(rng.permutation(8)).cuda()
    assert torch.equal(conv(moved["u"][order], moved["k"]), conv(moved["u"], moved["k"])[order])


def test_a_graph_of_torch_compile_calls_the_kernels(rng: np.random.Generator) -> None:
    problem = Problem("causal", 1024, "fp16")
    conv = get(problem)
    given = arguments(problem, rng, (2, 3, 1024), 1024)
    moved = on_gpu(given)
    made = torch.compile(lambda u, k: conv(u, k) * 1, fullgraph=True, backend="eager")
    hold(problem, conv, given, made(moved["u"], moved["k"]))


TRAINED = [
    Problem("causal", 256, "fp16"),
    Problem("causal", 4096, "bf16"),
    Problem("causal", 32_768, "bf16"),
    Problem("circular", 1000, "fp16"),
    Problem("causal", 65_536, "bf16"),
    Problem("causal", 4096, "fp32"),
    Problem("circular", 5003, "fp32"),
]


@pytest.mark.parametrize("problem", TRAINED, **ids)
def test_gradients_of_a_gated_call(problem: Problem, rng: np.random.Generator) -> None:
    """All of them by one pass; on a circle those of u and of its gate by one transform."""
    conv, n = get(problem), problem.length
    given = gradients.draw(rng, (3, 2, n), n, ("in_gate", "out_gate", "skip"), TORCH[problem.dtype])
    cotangent = torch.from_numpy(rng.standard_normal((3, 2, n))).to(TORCH[problem.dtype])
    leaves = {name: x.detach().cuda().requires_grad_() for name, x in given.items()}
    y = conv(**leaves)
    y.backward(cotangent.cuda())
    used: dict[Any, Any] = dict(conv._backwards if problem.causal else conv._twins)
    assert [loaded is not None for loaded in used.values()] == [True]
    _, wanted = gradients.exact(given, cotangent, mode=problem.mode, length=n)
    plan = conv.plan()
    kind = (problem.dtype, plan.order, plan.compute_format)
    for name in ("u", "in_gate", "out_gate"):
        found = leaves[name].grad
        assert found is not None
        gradients.judge(found.cpu(), wanted[name], gradient_accuracy.signal(*kind, gated=True))
    of_filter = leaves["k"].grad
    assert of_filter is not None
    gradients.judge(of_filter.cpu(), wanted["k"], gradient_accuracy.filters(*kind, gates=2))


@pytest.mark.parametrize("gates", [(), ("in_gate", "out_gate")], ids=["plain", "gated"])
@pytest.mark.parametrize(("length", "dtype"), IN_SECTIONS)
def test_gradients_of_many_rows_in_sections(
    length: int, dtype: str, gates: tuple[str, ...], rng: np.random.Generator
) -> None:
    """Of more rows than go together, a channel in two turns among them; the same bits once more."""
    problem = Problem("causal", length, dtype)
    conv, shape = get(problem), (7, 43, length - 4096)
    given = gradients.draw(rng, shape, shape[-1], gates, TORCH[dtype])
    cotangent = torch.from_numpy(rng.standard_normal(shape)).to(TORCH[dtype])
    leaves = {name: x.detach().cuda().requires_grad_() for name, x in given.items()}
    plan = conv.backward_sections(leaves["u"].device, problem, *shape[:2], bool(gates))
    if plan is None:
        pytest.skip("no sections that take less than one transform of everything")

    def step() -> dict[str, torch.Tensor]:
        made = torch.autograd.grad(conv(**leaves), list(leaves.values()), cotangent.cuda())
        return dict(zip(leaves, made, strict=True))

    found = step()
    assert conv._backwards_sectioned
    _, wanted = gradients.exact(given, cotangent, mode=problem.mode, length=length)
    kind = (dtype, plan.order, plan.compute_format)
    for name in leaves:
        of_filter = name == "k"
        limit = gradient_accuracy.filters(*kind) if of_filter else gradient_accuracy.signal(*kind)
        gradients.judge(found[name].cpu(), wanted[name], limit)
    again = step()
    assert all(torch.equal(again[name], x) for name, x in found.items())


def test_cotangents_in_a_batch_are_served_one_by_one(rng: np.random.Generator) -> None:
    """``is_grads_batched``: what each gives by itself."""
    conv = get(Problem("causal", 1000, "bf16"))
    given = gradients.draw(rng, (8, 3, 1000), 1000, ("in_gate", "out_gate"), torch.bfloat16)
    leaves = {name: x.detach().cuda().requires_grad_() for name, x in given.items()}
    y = conv(**leaves)
    v = torch.from_numpy(rng.standard_normal((2, *y.shape))).bfloat16().cuda()
    made = torch.autograd.grad(y, list(leaves.values()), v, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        each = torch.autograd.grad(y, list(leaves.values()), v[i], retain_graph=True)
        for batched, alone in zip(made, each, strict=True):
            torch.testing.assert_close(batched[i], alone)


@pytest.mark.parametrize(("batch", "channels", "taps"), [(2, 128, 128), (8, 64, 2048)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_long_signals_with_short_filters_go_window_by_window(
    dtype: str, batch: int, channels: int, taps: int, rng: np.random.Generator
) -> None:
    """Windows of a row together, and the same window of all rows; all gradients, too."""
    problem = Problem("causal", 65_536, dtype)
    conv, n = get(problem), problem.length
    options = ("k_rev", "in_gate", "out_gate", "skip")
    given = gradients.draw(rng, (batch, channels, n), taps, options, TORCH[dtype])
    cotangent = torch.from_numpy(rng.standard_normal((batch, channels, n))).to(TORCH[dtype])
    leaves = {name: x.detach().cuda().requires_grad_() for name, x in given.items()}
    found = conv.windows_of(leaves["u"].device, problem, (batch, channels, n), taps, taps)
    assert found is not None
    y = conv(**leaves)
    y.backward(cotangent.cuda())
    exact, wanted = gradients.exact(given, cotangent, mode=problem.mode, length=n)
    plan = fftgen.get_conv(found.length, dtype, causal=True).plan()
    kind = (dtype, plan.order, plan.compute_format)
    check(y.detach().double().cpu().numpy(), exact.numpy(), *kind)
    for name in ("u", "in_gate", "out_gate", "k", "k_rev"):
        of_filter = name.startswith("k")
        limit = (
            gradient_accuracy.filters(*kind, gates=2)
            if of_filter
            else gradient_accuracy.signal(*kind, gated=True)
        )
        made = leaves[name].grad
        assert made is not None
        gradients.judge(made.cpu(), wanted[name], limit)
