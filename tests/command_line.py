"""Running ``fftgen`` inside the test process, and what the tests that compile need."""

from __future__ import annotations

import inspect
import json
from typing import Any

from click.testing import CliRunner, Result

from fftgen import nvrtc
from fftgen.cli import main
from fftgen.errors import ToolchainError


def fftgen(*arguments: object) -> Result:
    """The command with these arguments; ``stdout`` and ``stderr`` of the result are apart."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    runner: Any = CliRunner
    result: Result = runner(**apart).invoke(main, [str(a) for a in arguments], prog_name="fftgen")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*arguments: object) -> Any:
    """What a command that succeeds prints with ``--json``."""
    result = fftgen(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def why_not() -> str:
    """Why nothing can be compiled here, or "" when it can."""
    try:
        missing = nvrtc.headers().missing
    except ToolchainError as error:
        return str(error)
    return f"the CUDA headers at hand lack {', '.join(missing)}" if missing else ""
