"""Shared fixtures. This file also puts the helper modules of ``tests/`` on the import path."""

from __future__ import annotations

import gc
import os
import secrets
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import compiled
import numpy as np
import pytest

from fftgen import emulate

# Worker processes of one session find the same.
SEED = int(os.environ.setdefault("FFTGEN_TEST_SEED", str(secrets.randbelow(2**31))))


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked ``drawn(n)`` one in n of its usual cases runs, drawn by the seed; others are slow.

    Tests of the same cases marked ``drawn(n, together=name)`` run the same ones of them, which they may share
    kernels for.
    """
    sweeps = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("drawn")
        if mark is not None and item.get_closest_marker("slow") is None:
            name = item.nodeid.partition("[")[0]
            sweeps[name, mark.kwargs.get("together", name), mark.args[0]].append(item)
    for (_, drawn_by, part), cases in sweeps.items():
        order = np.random.default_rng([SEED, zlib.crc32(drawn_by.encode())]).permutation(len(cases))
        for number in order[-(-len(cases) // part) :]:
            cases[number].add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a kernel cache that begins empty and that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session cache"


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(session_cache: Path) -> Iterator[None]:
    """Tests that simulate the same kernels share their PTX: compiling takes longer than most simulations."""
    compiled.directory = session_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulate, "line_ptx", compiled.line_ptx_of)
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers in every session; a failing test shows the seed that brings the same ones back."""
    print(f"FFTGEN_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])
