"""The command line: plan · render · build · inspect · verify · cache · doctor · portfolio · figures · bench ·
tune.

Exit status: 0 done, 1 failed (a compile error, a damaged file, a wrong result), 2 asked for what is not
served. Errors go to stderr in one message; ``-v`` adds the traceback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
import warnings
from importlib import import_module
from typing import Any

import click

from fftgen import __version__
from fftgen.errors import FFTGenError, InputError, NoPlanError

VERBOSE = "fftgen.verbose"
_COMMANDS = {
    "plan": "fftgen.cli.plan",
    "render": "fftgen.cli.render",
    "build": "fftgen.cli.build",
    "inspect": "fftgen.cli.inspect",
    "verify": "fftgen.cli.verify",
    "cache": "fftgen.cli.cache",
    "doctor": "fftgen.cli.doctor",
    "portfolio": "fftgen.cli.portfolio",
    "figures": "fftgen.cli.figures",
    "bench": "fftgen.cli.bench",
    "tune": "fftgen.cli.tune",
}


class _Commands(click.Group):
    """Loads a command's module when the command is used, and turns errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command: click.Command = import_module(_COMMANDS[name]).command
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # --help and --version are written before there is a command to invoke
            if not kwargs.get("standalone_mode", True):
                raise
            _tell(error)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except FFTGenError as error:
                if ctx.meta.get(VERBOSE):
                    click.echo(traceback.format_exc(), err=True, nl=False)
                click.echo(f"error: {error}", err=True)
                ctx.exit(2 if isinstance(error, InputError | NoPlanError) else 1)
            except OSError as error:
                if error.errno == errno.EPIPE:  # the reader has gone: click leaves without a word
                    raise
                if ctx.meta.get(VERBOSE):
                    click.echo(traceback.format_exc(), err=True, nl=False)
                _tell(error)
                ctx.exit(1)


def _tell(error: OSError) -> None:
    """Say which file failed; an error that names none came from writing the output."""
    if error.filename is not None:
        click.echo(f"error: {error.filename}: {error.strerror}", err=True)
        return
    # What is left in its buffer would fail again at the end of the process, with a status of its own.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    with contextlib.suppress(OSError):  # both may go to the same disk
        click.echo(f"error: the output cannot be written ({error.strerror or error})", err=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"warning: {message}", err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="fftgen", message="fftgen %(version)s")
def main() -> None:
    """A compiler for long convolutions on tensor cores.

    Plans a Monarch FFT for a length, renders the CUDA kernels, compiles them for every GPU architecture
    and proves them on the CPU. Only bench and tune need a GPU.
    """
