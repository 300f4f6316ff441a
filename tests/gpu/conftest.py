"""A kernel that faults takes its process along, and one that hangs its test: neither costs other tests.

After a fault nothing works any more in a process, and each of its later tests would fail for it. pytest-xdist
starts another worker for the rest; without workers the session ends there, and says why.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import pytest
import torch

LIMIT = 240.0  # seconds of a test: the longest is a suite with a budget of 150


@pytest.fixture(scope="session")
def _terminal(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """Where words are seen that a process writes last: pytest would keep them for a report."""
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        copy = os.dup(2)
    with open(copy, "w") as stream:
        yield stream


@pytest.fixture(autouse=True)
def _device_is_still_there(request: pytest.FixtureRequest, _terminal: TextIO) -> Iterator[None]:
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=_terminal)
    yield
    reason = gone()
    faulthandler.cancel_dump_traceback_later()
    if not reason:
        return
    said = f"the GPU was lost in {request.node.nodeid}: {reason}"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.exit(said, returncode=1)
    print(said, file=_terminal, flush=True)
    sys.stdout.flush()
    os._exit(1)


def gone() -> str:
    """Why nothing works on the GPU any more, in this process; an error that does not stay is none of that."""
    error: Exception | None = None
    for _ in range(2):
        try:
            torch.cuda.synchronize()
        except RuntimeError as found:
            error = found
        else:
            return ""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
