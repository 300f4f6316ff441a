"""The kernels that are committed in ``generated/``, so that a change to planner or templates is reviewed
as a diff of kernels.

For each one: the source as the compiler gets it, and its plan. An index says what every problem's kernels
take on two architectures. Nothing depends on where, when or for whom it is written; the resources depend
on the compiler, whose release the index names. What running them showed is in evidence.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fftgen import nvrtc
from fftgen.bundle import Job, build_all
from fftgen.cache import Cache
from fftgen.pipeline import Built
from fftgen.planner import search
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.render import command, render
from fftgen.targets import target as find_target

INDEX = "index.json"
MEASURED = ("sm_80", "sm_90")  # the architectures of the index

# Lengths by what they exercise: a warp's tile (256, 1024), a block (4096 to 32768), device memory (from
# 65536, twice at 1048576), a length that is no power of two (20480) and one that has to be folded (1000).
PROBLEMS = tuple(
    Problem(mode, length, dtype)
    for mode, length, dtype in (
        ("circular", 256, "bf16"),
        ("causal", 256, "fp16"),
        ("circular", 1000, "fp16"),
        ("causal", 1024, "bf16"),
        ("circular", 4096, "bf16"),
        ("causal", 4096, "bf16"),
        ("circular", 20480, "fp16"),
        ("causal", 20480, "bf16"),
        ("circular", 32768, "bf16"),
        ("causal", 32768, "fp16"),
        ("circular", 65536, "bf16"),
        ("causal", 65536, "bf16"),
        ("causal", 1048576, "bf16"),
    )
)
# Chips with less shared memory get other plans.
OTHERS = (
    (Problem("causal", 4096, "fp16"), "sm_75"),
    (Problem("causal", 4096, "bf16"), "sm_80"),
    (Problem("causal", 32768, "bf16"), "sm_86"),
)


@dataclass(frozen=True)
class Member:
    """One kernel source of the portfolio."""

    problem: Problem
    target: str

    @property
    def plan(self) -> Plan:
        return search.plan(self.problem, find_target(self.target))

    @property
    def stem(self) -> str:
        """File name without its end: without the digest, so that a change shows as a diff."""
        p = self.problem
        return f"{p.mode}-{p.length}-{p.dtype}-{self.target}"


MEMBERS = (*(Member(p, "sm_90") for p in PROBLEMS), *(Member(p, t) for p, t in OTHERS))


def sources() -> dict[str, str]:
    """File name to content: the source and the plan of every member. Needs no compiler."""
    found = {}
    for member in MEMBERS:
        plan = member.plan
        found[f"{member.stem}.cu"] = render(plan).text
        found[f"{member.stem}.plan.json"] = as_json(
            {
                "line": str(plan),
                "digest": plan.digest,
                "command": command(plan),
                "plan": json.loads(plan.to_json()),
            }
        )
    return found


def index(
    cache: Cache | None = None,
    done: Callable[[Built], None] | None = None,
    problems: Sequence[Problem] = PROBLEMS,
) -> dict[str, Any]:
    """What every kernel of every problem takes on the architectures of MEASURED, by this NVRTC."""
    targets = [find_target(name) for name in MEASURED]
    jobs: list[Job] = [(problem, target, "convolution") for problem in problems for target in targets]
    return {
        "compiler": f"nvrtc {nvrtc.build()}",
        "modules": [_module(built) for built in build_all(jobs, cache, done)],
    }


def _module(built: Built) -> dict[str, Any]:
    plan = built.plan
    p = plan.problem
    return {
        "problem": f"{p.mode} {p.length} {p.dtype}",
        "target": plan.target,
        "plan": str(plan).split(" | ")[1],
        "digest": plan.digest,
        "code_bytes": len(built.cubin),
        "table_bytes": len(built.tables),
        "kernels": [
            *(_kernel(built, k.label, plan.entry(k), 32 * k.warps) for k in plan.every_kernel),
            *(_kernel(built, k.role, plan.filter_entry(k), k.threads) for k in plan.filter.kernels),
        ],
    }


def _kernel(built: Built, label: str, entry: str, threads: int) -> dict[str, Any]:
    """What a kernel takes, those that make the filter's spectrum included."""
    found = built.resources[entry]
    return {
        "name": label,
        "registers": found.registers,
        "spill_bytes": found.spill_store_bytes + found.spill_load_bytes,
        "shared_bytes": built.entries[entry],
        "threads": threads,
    }


def table(facts: dict[str, Any]) -> list[str]:
    """The index as lines of a table."""
    lines = [
        "| problem | target | plan | kernel | threads | registers | spilled | shared |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for module in facts["modules"]:
        head = f"| {module['problem']} | {module['target']} | {module['plan']} "
        for kernel in module["kernels"]:
            lines.append(
                f"{head}| {kernel['name']} | {kernel['threads']} | {kernel['registers']} "
                f"| {kernel['spill_bytes']} | {kernel['shared_bytes']} |"
            )
            head = "| | | "
    return lines


def as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
