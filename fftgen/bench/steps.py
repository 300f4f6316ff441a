"""What a run consists of: steps that travel to a worker as JSON, and what the worker does for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from fftgen.bench.backend import Backend, environment
from fftgen.bench.cases import DIRECTIONS, Case
from fftgen.bench.gradient_kernels import gradient_kernel_times
from fftgen.bench.gradient_proof import check_gradient, check_gradient_agreement
from fftgen.bench.kernels import kernel_times
from fftgen.bench.measure import copy_bandwidth
from fftgen.bench.overhead import cold_start, host_overhead
from fftgen.bench.proof import check_agreement, check_portfolio
from fftgen.bench.rates import device_rates
from fftgen.bench.row import CONTENDERS, first_line, measure_row
from fftgen.bench.sanitizer import TOOLS, sanitize
from fftgen.bundle import (
    Kind,
    backward_in_sections,
    build_twin,
    in_sections,
    problems_of,
    trained_in_sections,
    trains,
)
from fftgen.pipeline import Built, build, build_gradient, build_plan
from fftgen.planner.gradient import backward, gradient
from fftgen.portfolio import PROBLEMS
from fftgen.problem import Problem
from fftgen.targets import target as find_target

Tell = Callable[[str], None]

# torch.compile takes seconds for every shape: a suite compiles at these lengths, gated and causal in bf16.
COMPILED_LENGTHS = (1024, 4096, 32768)
COMPILED = tuple(name for name, c in CONTENDERS.items() if c.compiled)
OURS = tuple(name for name, c in CONTENDERS.items() if c.ours)
NOT_COMPILED = "compiling takes long: in a suite only gated causal bf16 of " + ", ".join(
    map(str, COMPILED_LENGTHS)
)
COMPILED_BACKWARD = (4096,)  # two compilations each
NOT_COMPILED_BACKWARD = "compiling takes long: in a suite backward only at " + ", ".join(
    map(str, COMPILED_BACKWARD)
)
# Lengths whose kernels a suite times one by one: a warp's, a block's, and several with a device stage.
KERNELS_CAUSAL = (1024, 4096, 32768, 65536, 131072, 1048576, 4194304)
KERNELS_CIRCULAR = (4096, 65536, 1048576)
KERNELS_GATED = (4096, 65536)
KERNELS_BACKWARD = (4096, 65536)
SANITIZED = (
    Problem("causal", 1024, "bf16"),
    Problem("circular", 4096, "bf16"),
    Problem("causal", 65536, "bf16"),
)
SANITIZED_GRADIENTS = (Problem("causal", 1024, "bf16"),)
# Gradients that are proven: a warp's kernel, a block's, a circular length, device memory, fp32.
GRADIENTS = (
    Problem("causal", 256, "fp16"),
    Problem("causal", 1024, "bf16"),
    Problem("circular", 4096, "bf16"),
    Problem("causal", 32768, "fp16"),
    Problem("causal", 65536, "bf16"),
    Problem("causal", 4096, "fp32"),
)
# Steps that run kernels of ours, by kind, and those of which direction; None: their parameters say.
DIRECTION_OF = {
    "correctness": "forward",
    "agreement": "forward",
    "gradient": "backward",
    "gradient agreement": "backward",
    "sanitizer": None,
    "row": None,
    "kernels": None,
}
Kernels = tuple[str, int, str, str]  # mode, length, dtype, direction
# Modules, the largest first.
OF_FORWARD: tuple[Kind, ...] = ("convolution", "sections")
OF_BACKWARD: tuple[Kind, ...] = (
    "backward",
    "backward sections",
    "trained sections",
    "gradient",
    "twin",
)
AGREEING = 4096  # the longest transforms of the portfolio that are small for the simulator
COLD_LENGTHS = (4096, 65536)
# Seconds without news after which a worker is ended. A proof says nothing until it is done: up to 3 were
# measured. A row tells who is at work, and of slow calls each by itself: whole rows took up to 13 without
# torch.compile, 38 with gradients of 1M points (results/).
PROOF_LIMIT, ROW_LIMIT = 20.0, 45.0
BUILD_LIMIT = 120.0  # at least; a machine may be BUILD_SLACK times as slow as a build step expects
BUILD_SLACK = 3.0
COMPILING = 6.0  # seconds of torch.compile for a contender; as many again for its backward pass


@dataclass(frozen=True)
class Step:
    """``kind`` names a runner below, ``params`` its arguments (plain data), ``name`` the step for people.

    ``expected``: seconds it usually takes; it is not begun with less left. ``limit``: seconds after which
    its worker is ended when it has not said anything, counted from when it last did.
    """

    kind: str
    name: str
    params: dict[str, Any] = field(default_factory=dict)
    expected: float = 5.0
    limit: float = 60.0

    @property
    def kernels(self) -> tuple[Kernels, ...]:
        """Kernels of ours that it runs; the last are those that it is about."""
        if self.kind not in DIRECTION_OF:
            return ()
        direction = DIRECTION_OF[self.kind] or self.params.get("direction")
        if direction is None:  # of the sanitizer
            direction = "forward" if self.params["call"] == "conv" else "backward"
        p, until = self.params, DIRECTIONS.index(direction)  # what goes backward went forward first
        return tuple((p["mode"], p["length"], p["dtype"], d) for d in DIRECTIONS[: until + 1])


def _problem(params: dict[str, Any]) -> Problem:
    return Problem(params["mode"], params["length"], params["dtype"])


def _run_build(params: dict[str, Any], backend: Backend, tell: Tell) -> dict[str, Any]:
    """Compile everything at once, so that later steps find it in the cache.

    ``gradients``: problems whose backward pass is compiled as well, where the target has kernels for it.
    A job is a module, and the longest transforms come first: what is begun last is done soon.
    """

    def one(job: tuple[Problem, Kind]) -> tuple[bool, str]:
        problem, kind = job
        try:
            return _built(problem, kind, backend) is not None, ""
        except Exception as error:
            return True, f"{problem.mode} {problem.length} {problem.dtype} {kind}: {first_line(error)}"

    jobs = _jobs(*([_problem(fields) for fields in params[name]] for name in ("problems", "gradients")))
    with ThreadPoolExecutor(max_workers=params["threads"]) as pool:
        done = list(pool.map(one, jobs))
    failed = [reason for _, reason in done if reason]
    count = sum(there for there, _ in done)
    return {"status": "failed" if failed else "passed", "modules": count, "reason": "; ".join(failed)}


def _jobs(problems: Iterable[Problem], gradients: Iterable[Problem]) -> list[tuple[Problem, Kind]]:
    """Everything that a build step asks for, the longest first; of some there is no module."""
    jobs: list[tuple[Problem, Kind]] = [(p, kind) for p in problems for kind in OF_FORWARD]
    jobs += [(p, kind) for p in gradients for kind in OF_BACKWARD]
    return sorted(jobs, key=lambda job: -job[0].length)


def _built(problem: Problem, kind: Kind, backend: Backend) -> Built | None:
    """A module that calls take; None: there is none of that kind."""
    chip = find_target(backend.target)
    if kind == "convolution":
        return build(problem, chip, gpu=backend.gpu)
    if kind == "sections":
        cut = in_sections(problem, chip)
        return None if cut is None else build_plan(cut)
    if kind == "trained sections":
        cut = trained_in_sections(problem, chip)
        return None if cut is None else build_plan(cut)
    if kind == "backward sections":
        both = backward_in_sections(problem, chip)
        return None if both is None else build_gradient(both)
    if kind == "twin":
        return build_twin(problem, chip)
    if kind == "backward":
        every = backward(problem, chip)
        return None if every is None else build_gradient(every)
    return build_gradient(gradient(problem, chip)) if trains(problem, chip) else None


def _kernel_times(case: Case) -> Callable[..., dict[str, Any]]:
    return gradient_kernel_times if case.direction == "backward" else kernel_times


def _case(params: dict[str, Any]) -> Case:
    shape = params["batch"], params["channels"]
    return Case(_problem(params), params["gated"], *shape, params["direction"], params.get("taps", 0))


def _run_row(params: dict[str, Any], backend: Backend, tell: Tell) -> dict[str, Any]:
    row = measure_row(
        _case(params),
        backend,
        contenders=params["contenders"],
        lost=params.get("lost"),
        left_out=params.get("left_out"),
        seed=params["seed"],
        seconds=params["seconds"],
        tell=tell,
    )
    ours = [c["status"] for c in row["contenders"].values() if c["ours"]]
    status = next((s for s in ("wrong", "failed", "lost") if s in ours), "passed")
    return {"status": "failed" if status == "lost" else status, **row}


RUNNERS: dict[str, Callable[[dict[str, Any], Backend, Tell], dict[str, Any]]] = {
    "environment": lambda params, backend, tell: {"status": "passed", **environment(backend)},
    "build": _run_build,
    "correctness": lambda params, backend, tell: check_portfolio(_problem(params), backend, params["seed"]),
    "agreement": lambda params, backend, tell: check_agreement(_problem(params), backend, params["seed"]),
    "gradient": lambda params, backend, tell: check_gradient(_problem(params), backend, params["seed"]),
    "gradient agreement": lambda params, backend, tell: check_gradient_agreement(
        _problem(params), backend, params["seed"]
    ),
    "sanitizer": lambda params, backend, tell: sanitize(
        _problem(params), params["tool"], params["timeout"], params["call"]
    ),
    "bandwidth": lambda params, backend, tell: {"status": "passed", **copy_bandwidth(backend)},
    "overhead": lambda params, backend, tell: host_overhead(backend, params["seed"], params["rounds"]),
    "cold start": lambda params, backend, tell: cold_start(
        _problem(params), backend.target, params["timeout"]
    ),
    "row": _run_row,
    "kernels": lambda params, backend, tell: _kernel_times(_case(params))(
        _case(params), backend, seed=params["seed"], tell=tell
    ),
    "rates": lambda params, backend, tell: {"status": "passed", **device_rates(backend)},
}
# Kinds whose steps may show that something of ours is wrong or broken: the run fails with them.
PROOFS = (
    *("build", "correctness", "agreement", "gradient", "gradient agreement"),
    *("sanitizer", "row", "overhead", "cold start", "kernels"),
)


def environment_step() -> Step:
    return Step("environment", "environment", expected=1, limit=60)


def bandwidth_step() -> Step:
    return Step("bandwidth", "copy bandwidth", expected=3)


def with_padded(problems: Iterable[Problem]) -> list[Problem]:
    """Problems, and those that short calls of circular ones become: proofs make such calls, rows do not."""
    return [served for p in problems for served in problems_of(p)]


def build_step(problems: Iterable[Problem], threads: int, gradients: Iterable[Problem] = ()) -> Step:
    """Convolutions, and of ``gradients`` all that a backward pass needs, compiled ahead."""
    unique, trained = list(dict.fromkeys(problems)), list(dict.fromkeys(gradients))
    params = {
        "problems": [asdict(p) for p in unique],
        "gradients": [asdict(p) for p in trained],
        "threads": threads,
    }
    expected = 1 + len(_jobs(unique, trained)) / threads
    about = f"kernels of {len(unique)} problems compiled ahead"
    return Step("build", about, params, expected, max(BUILD_LIMIT, BUILD_SLACK * expected))


def row_steps(cases: Iterable[Case], contenders: Sequence[str], seed: int, seconds: float) -> list[Step]:
    """A step per case; a contender gets ``seconds`` of device time."""
    found = []
    for case in cases:
        params = {**_fields(case), "contenders": list(contenders), "seed": seed, "seconds": seconds}
        one = COMPILING * (2 if case.direction == "backward" else 1)
        compiled = sum(name in COMPILED for name in contenders)
        limit = ROW_LIMIT + (2 * one if compiled else 0)  # they are compiled one after the other
        found.append(Step("row", str(case), params, 4 + compiled * one, limit))
    return found


def _fields(case: Case) -> dict[str, Any]:
    """What ``_case`` makes a case of."""
    return {**case.about, "batch": case.batch, "channels": case.channels}


def kernel_steps(cases: Iterable[Case], seed: int) -> list[Step]:
    """Every kernel by itself; backward, of cases that kernels may take by one pass."""
    return [
        Step("kernels", f"kernels of {case}", {**_fields(case), "seed": seed}, expected=4, limit=ROW_LIMIT)
        for case in cases
        if case.direction == "forward" or (case.problem.causal and not case.taps)
    ]


def suite_kernels(cases: Sequence[Case], seed: int) -> list[Step]:
    """The same of a suite: those that a model of kernels has to be fitted to, and two of the published
    problem."""
    wanted = [c for c in cases if c.problem.dtype == "bf16" and not c.taps and _telling(c)]
    return kernel_steps(sorted(wanted, key=lambda c: (c.gated, not c.problem.causal)), seed)


def _telling(case: Case) -> bool:
    if case.direction == "backward":
        return case.gated and case.length in KERNELS_BACKWARD
    if case.gated:
        return case.problem.causal and case.length in KERNELS_GATED
    return case.length in (KERNELS_CAUSAL if case.problem.causal else KERNELS_CIRCULAR)


def rates_step() -> Step:
    return Step("rates", "rates of memories and matrix units", expected=5)


def suite_rows(cases: Iterable[Case], contenders: Sequence[str], seed: int, seconds: float) -> list[Step]:
    """``row_steps`` with torch.compile only where a suite has the time for it."""
    found = []
    for case in cases:
        p = case.problem
        backward = case.direction == "backward"
        lengths = COMPILED_BACKWARD if backward else COMPILED_LENGTHS
        compiled = case.gated and p.causal and p.dtype == "bf16" and p.length in lengths
        names = [n for n in contenders if compiled or n not in COMPILED]
        (step,) = row_steps([case], names, seed, seconds)
        reason = NOT_COMPILED_BACKWARD if backward else NOT_COMPILED
        step.params["left_out"] = {n: reason for n in contenders if n not in names}
        found.append(step)
    return found


def proof_steps(
    seed: int, problems: Sequence[Problem] = PROBLEMS, gradients: Sequence[Problem] = GRADIENTS
) -> list[Step]:
    """Correctness of the portfolio, and agreement with the simulator on its small kernels; then the same
    of the kernels of gradients."""

    def proof(kind: str, about: str, p: Problem, expected: float) -> Step:
        name, params = f"{about} {p.mode} {p.length} {p.dtype}", {**asdict(p), "seed": seed}
        return Step(kind, name, params, expected, PROOF_LIMIT)

    found = [proof("correctness", "correctness", p, 4) for p in problems]
    found += [proof("agreement", "simulator", p, 5) for p in problems if p.length <= AGREEING]
    for p in gradients:
        found.append(proof("gradient", "gradients", p, 4))
        if p.length <= AGREEING:
            found.append(proof("gradient agreement", "simulator, gradient", p, 5))
    return found


def sanitizer_steps(
    tools: Sequence[str] = TOOLS, problems: Sequence[Problem] = SANITIZED, call: str = "conv"
) -> list[Step]:
    """compute-sanitizer on small kernels, a step for each tool and kernel. ``call``: of sanitizer.CALLS."""
    found = []
    for tool in tools:
        for p in problems:
            params = {**asdict(p), "tool": tool, "timeout": 40.0, "call": call}
            name = f"compute-sanitizer {tool} {p.mode} {p.length} {p.dtype}"
            name += "" if call == "conv" else f" {call}"
            found.append(Step("sanitizer", name, params, expected=12, limit=50))
    return found


def host_steps(seed: int, rounds: int, lengths: Sequence[int] = COLD_LENGTHS) -> list[Step]:
    """Overhead of a call, and cold starts."""
    found = [Step("overhead", "host overhead of a call", {"seed": seed, "rounds": rounds}, 3)]
    for length in lengths:
        params = {**asdict(Problem("causal", length, "bf16")), "timeout": 50.0}
        found.append(Step("cold start", f"cold start causal {length} bf16", params, expected=15))
    return found
