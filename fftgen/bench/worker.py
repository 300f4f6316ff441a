"""The process that touches the device: reads steps from stdin, writes what it found to stdout, as JSON lines.

    {"ready": true}                         once, when the device is open; or {"error": "..."} when it is not
    {"at": "torch-real"}                    who is at work inside a step
    {"result": {"status": "passed", ...}}   the end of a step
    {"lost": "flashfftconv", "reason": ..}  the end of a step and of this process: the device is gone

Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from fftgen.bench.backend import Backend, open_backend
from fftgen.bench.row import DeviceLost, first_line
from fftgen.bench.steps import RUNNERS
from fftgen.errors import FFTGenError

DRY_RUN = "--dry-run"


def perform(
    kind: str, params: dict[str, Any], backend: Backend, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run one step; whatever goes wrong in it is its result. Raises DeviceLost."""
    try:
        result = RUNNERS[kind](params, backend, tell)
    except DeviceLost:
        raise
    except Exception as error:
        result = {"status": "failed", "reason": first_line(error)}
    try:
        backend.synchronize()
    except Exception as error:
        raise DeviceLost("", first_line(error)) from error
    backend.release()
    return result


def serve(backend: Backend, requests: TextIO, answers: TextIO) -> bool:
    """Perform steps until there are no more (True) or the device is lost (False)."""

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    say({"ready": True})
    for line in requests:
        step = json.loads(line)
        try:
            say({"result": perform(step["kind"], step["params"], backend, lambda who: say({"at": who}))})
        except DeviceLost as lost:
            say({"lost": lost.name, "reason": lost.reason})
            return False
    return True


def main() -> int:
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # the supervisor ends the whole group
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not get between the answers
    try:
        backend = open_backend(DRY_RUN in sys.argv[1:])
    except FFTGenError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        answers.flush()
        return 1
    return 0 if serve(backend, sys.stdin, answers) else 3


if __name__ == "__main__":
    sys.exit(main())
