"""tests/gpu/conftest.py with a GPU that is not there: what faults or hangs costs other tests nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = Path(__file__).parents[1] / "gpu" / "conftest.py"

# Stands for PyTorch in the session that is looked at.
TORCH = """
class cuda:
    errors = []

    @classmethod
    def synchronize(cls):
        if cls.errors:
            raise RuntimeError(cls.errors[0] if cls.errors[0] == "illegal address" else cls.errors.pop())
"""
TESTS = """
import time
import torch

def test_before():
    pass

def test_passing():
    torch.cuda.errors[:] = ["it passes"]

def test_bad():
    {bad}

def test_after():
    assert not torch.cuda.errors
"""
FAULT, HANG = 'torch.cuda.errors[:] = ["illegal address"]', "time.sleep(600)"


def session(place: Path, bad: str, *options: str) -> tuple[int, str]:
    """Exit status and output of a session of these tests."""
    (place / "torch.py").write_text(TORCH)
    (place / "test_it.py").write_text(TESTS.format(bad=bad))
    (place / "conftest.py").write_text(GUARD.read_text().replace("LIMIT = 240.0", "LIMIT = 2.0"))
    (place / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=place,
        env={**environment, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("bad", [FAULT, HANG], ids=["fault", "hang"])
def test_a_worker_ends_and_another_one_goes_on(bad: str, tmp_path: Path) -> None:
    status, said = session(tmp_path, bad, "-n", "1")
    assert status == 1
    assert "crashed while running 'test_it.py::test_bad'" in said
    # Where it faults, the test itself has passed before the fault is seen.
    assert f"1 failed, {4 if bad == FAULT else 3} passed" in said
    if bad == FAULT:
        assert "the GPU was lost in test_it.py::test_bad: illegal address" in said
    else:
        assert "Timeout (0:00:02)!" in said
        assert "in test_bad" in said


def test_without_workers_the_session_ends_and_says_why(tmp_path: Path) -> None:
    status, said = session(tmp_path, FAULT)
    assert status == 1
    assert "the GPU was lost in test_it.py::test_bad: illegal address" in said
    assert "failed" not in said.splitlines()[-1]


def test_without_workers_a_hang_says_where(tmp_path: Path) -> None:
    status, said = session(tmp_path, HANG)
    assert status == 1
    assert "in test_bad" in said
