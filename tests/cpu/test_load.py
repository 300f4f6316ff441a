"""``fftgen.load`` without compiler and GPU: artifacts whose plans are real and whose machine code is not."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fftgen
from fftgen import artifact
from fftgen.artifact import Artifact, Module
from fftgen.bundle import TABLES, Shelf, unpack
from fftgen.conv import registered
from fftgen.errors import ArtifactError, InputError
from fftgen.planner import search
from fftgen.planner.gradient import backward
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.planner.twins import twin
from fftgen.problem import Problem
from fftgen.source import Source

WHOLE, HALF = Problem("circular", 512, "bf16"), Problem("causal", 256, "bf16")


def module(problem: Problem, code: bytes = b"code") -> Module:
    """The module of a problem on sm_90, with any bytes in the place of machine code."""
    plan = search.plan(problem, "sm_90")
    return Module(
        name=plan.name,
        plan=plan.to_json().encode(),
        plan_digest=plan.digest,
        source=Source("conv.cu", "// source\n", {}, ("conv",)),
        cubins={"sm_90": code},
        tables={TABLES: bytes(plan.table_bytes)},
    )


def write(path: Path, modules: Sequence[Module]) -> str:
    return artifact.write(path, Artifact(tuple(modules), "nvrtc 0.0"))


# --- which file a convolution is of


def code(conv: fftgen.Conv) -> bytes:
    return conv._provider.built(conv.problem, (9, 0)).cubin


def test_a_verified_file_gives_its_own_kernels(tmp_path: Path) -> None:
    """Whatever was loaded before: another file with the same plans, or an earlier one of the same name."""
    path, other = tmp_path / "x.fftgen", tmp_path / "other.fftgen"
    write(other, [module(HALF, b"of another")])
    first = fftgen.load(other)
    digest = write(path, [module(HALF)])
    conv = fftgen.load(path, sha256=digest)
    assert code(conv) == b"code"
    assert digest in conv.handle
    assert code(first) == b"of another"
    rebuilt = write(path, [module(HALF, b"rebuilt")])
    assert code(fftgen.load(path, sha256=rebuilt)) == b"rebuilt"
    assert {registered(c.handle) for c in (first, conv)} == {first, conv}


def test_files_of_equal_content_share_one_object(tmp_path: Path) -> None:
    """Wherever they lie: a graph that was traced with one finds the kernels of the other."""
    modules = [module(WHOLE), module(HALF)]
    write(tmp_path / "x.fftgen", modules)
    write(tmp_path / "y.fftgen", modules)
    conv = fftgen.load(tmp_path / "x.fftgen")
    assert fftgen.load(tmp_path / "y.fftgen") is conv
    assert pickle.loads(pickle.dumps(conv)) is conv


# --- which of its convolutions is meant


@pytest.mark.parametrize(
    ("asked", "meant"),
    [({}, WHOLE), ({"length": 512}, WHOLE), ({"length": 256}, HALF), ({"length": 256, "causal": True}, HALF)],
)
def test_a_problem_that_is_half_of_another_is_found_by_its_name(
    asked: dict[str, Any], meant: Problem, tmp_path: Path
) -> None:
    write(tmp_path / "x.fftgen", [module(WHOLE), module(HALF)])
    conv = fftgen.load(tmp_path / "x.fftgen", **asked)
    assert conv.problem == meant
    assert conv.plan("sm_90").problem == meant


def test_what_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    write(tmp_path / "x.fftgen", [module(WHOLE), module(HALF), module(Problem("causal", 512, "bf16"))])
    with pytest.raises(
        InputError, match=r"none of .*\(circular 512 bf16, causal 256 bf16, causal 512 bf16\)"
    ):
        fftgen.load(tmp_path / "x.fftgen", length=1024)
    with pytest.raises(InputError, match=r"2 of .*\(circular 512 bf16, causal 512 bf16\)"):
        fftgen.load(tmp_path / "x.fftgen", dtype="bf16")


ELSEWHERE = """
import pickle, sys, torch
conv, function, spectrum = pickle.loads(bytes.fromhex(sys.argv[1]))
u, k = torch.arange(64.0).reshape(1, 1, 64), torch.ones(1, 64)
assert torch.allclose({call}, u.cumsum(-1), rtol=1e-5, atol=1e-2)
"""


@pytest.mark.parametrize("call", ["conv(u, k)", "function(u, k, mode='causal')", "conv(u, spectrum)"])
def test_pickles_serve_in_another_process(call: str) -> None:
    """Whatever is called first there: what they name may be all that was imported."""
    conv = fftgen.get_conv(64, causal=True)
    given = pickle.dumps((conv, fftgen.fftconv, conv.prepare(torch.ones(1, 64))))
    script = [sys.executable, "-c", ELSEWHERE.format(call=call), given.hex()]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- plans that make no sense, under digests that fit


@pytest.mark.parametrize("plan", [b"\xff\xfe", b"[" * 100_000, b'{"schema":', b"[]", b"null", b""])
@pytest.mark.parametrize("prefix", ["", *Gradient.PREFIXES])
def test_a_forged_plan_is_an_artifact_error(prefix: str, plan: bytes, tmp_path: Path) -> None:
    digest = write(tmp_path / "x.fftgen", [replace(module(HALF), name=f"{prefix}x", plan=plan)])
    with pytest.raises(ArtifactError, match="build"):
        fftgen.load(tmp_path / "x.fftgen", sha256=digest)


@pytest.mark.parametrize(
    "change",
    [
        {"tables": {}},
        {"tables": {TABLES: b""}},
        {"plan_digest": "0" * 64},
        {"cubins": {}, "ptx": {"compute_80": b"\xff"}},
    ],
)
def test_a_forged_part_is_an_artifact_error(change: dict[str, object], tmp_path: Path) -> None:
    made = module(HALF)
    assert unpack(made).cubin == b"code"
    write(tmp_path / "x.fftgen", [replace(made, **change)])  # type: ignore[arg-type]
    conv = fftgen.load(tmp_path / "x.fftgen")
    with pytest.raises(ArtifactError, match="build the artifact anew"):
        conv.plan("sm_90")


@pytest.mark.parametrize(
    ("field", "value"),
    [("stages", 0), ("stages", None), ("stages", "x"), ("kernels", "x"), ("kernels", None), ("sections", [])],
)
def test_a_forged_plan_that_others_are_held_against_is_an_artifact_error(field: str, value: object) -> None:
    """Two results and gradients go with a convolution of the same plan: it may make no sense."""
    problem = Problem("causal", 4096, "bf16")
    plan = search.plan(problem, "sm_90")
    raw = json.loads(plan.to_json())
    if field == "sections":
        raw[field] = value
    else:
        raw[field][0]["scale" if field == "stages" else "shared_bytes"] = value
    text = json.dumps(raw)
    gradient = backward(problem, "sm_90")
    assert gradient is not None
    made = replace(module(problem), plan=text.encode())
    with suppress(Exception):  # some cannot even be named
        forged = Plan.from_json(text)
        made = replace(made, name=forged.name, plan_digest=forged.digest)
    others = [
        replace(module(problem), name=x.name, plan=x.to_json().encode(), plan_digest=x.digest)
        for x in (twin(plan), gradient)
    ]
    shelf = Shelf(Artifact((made, *others), "nvrtc 0.0"), "x")
    asked = (shelf.built, shelf.twin, shelf.backward, shelf.sections, shelf.trained_sections)
    failed = 0
    for ask in asked:
        try:
            ask(problem, (9, 0))
        except ArtifactError:
            failed += 1
    assert failed or field == "kernels"


def test_code_that_asks_for_more_shared_memory_than_a_chip_has_is_not_for_it(tmp_path: Path) -> None:
    """What was compiled for 8.0 runs on 8.6, but for blocks as large as only 8.0 has."""
    problem = Problem("causal", 32_768, "bf16")

    def of(name: str, **code: object) -> Module:
        plan = search.plan(problem, name)
        tables = {TABLES: bytes(plan.table_bytes)}
        text = plan.to_json().encode()
        made = replace(module(HALF), name=plan.name, plan=text, plan_digest=plan.digest, tables=tables)
        return replace(made, **code)  # type: ignore[arg-type]

    large = of("sm_80", cubins={"sm_80": b"large"})
    portable = of("compute_80", cubins={}, ptx={"compute_80": b"portable"})
    write(tmp_path / "x.fftgen", [large, portable])
    provider = fftgen.load(tmp_path / "x.fftgen")._provider
    assert provider.built(problem, (8, 0)).cubin == b"large"
    assert provider.built(problem, (8, 6)).ptx == "portable"
    write(tmp_path / "y.fftgen", [large])
    with pytest.raises(ArtifactError, match="no code for sm_86: it holds sm_80"):
        fftgen.load(tmp_path / "y.fftgen")._provider.built(problem, (8, 6))


def test_a_forged_field_of_a_plan_is_an_artifact_error(tmp_path: Path) -> None:
    """One that Python accepts where the plan is read, and trips over later."""
    made = module(HALF)
    plan = made.plan.replace(b'"sm_90"', b"90")
    write(tmp_path / "x.fftgen", [replace(made, plan=plan, plan_digest=hashlib.sha256(plan).hexdigest())])
    with pytest.raises(ArtifactError, match="build the artifact anew"):
        fftgen.load(tmp_path / "x.fftgen").plan("sm_90")
