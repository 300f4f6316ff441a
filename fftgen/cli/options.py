"""Options that several commands share, and how arguments are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fftgen.api import DEFAULT_TARGET
from fftgen.cli import VERBOSE
from fftgen.durable import check_writable, writing
from fftgen.errors import InputError
from fftgen.planner.engines import supports_engine
from fftgen.targets import target as find_target

Function = TypeVar("Function", bound=Callable[..., Any])
_RANGE = ".."
SEED = click.IntRange(0, 2**63 - 1)  # half of what torch's generators take: others are drawn from the next
STORAGE_TYPES = "Storage type: bf16, fp16 or fp32."


class Place(click.Path):
    """A path, and no empty one: that would be the working directory, which a variable unset may not mean."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty path: name a place ('.' is the working directory)", param, ctx)
        return super().convert(value, param, ctx)


def common(function: Function) -> Function:
    """``--json`` and ``-v``; the latter is kept where ``main`` looks for it."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta[VERBOSE] = value
        return value

    function = click.option(
        "-v", "--verbose", is_flag=True, callback=keep, help="Say more; show tracebacks."
    )(function)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def mode(function: Function) -> Function:
    """``--causal/--circular`` as the argument ``causal``."""
    return click.option(
        "--causal/--circular",
        "causal",
        default=False,
        help="Causal: y_t = sum of k_s u_(t-s), sequences up to N. Circular: period N. Default: circular.",
    )(function)


def engine(function: Function) -> Function:
    """``--engine``, in place of the planner's choice."""

    def known(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            supports_engine(value, find_target(DEFAULT_TARGET))
        return value

    return click.option(
        "--engine",
        callback=known,
        help="mma, wmma, simt (of fp32) or mma:bf16-fp32 (operands in bf16, sums in fp32), instead of the "
        "planner's choice: a legal plan or none.",
    )(function)


def one_problem(function: Function) -> Function:
    """LENGTH, ``--dtype``, ``--arch``, ``--engine`` and the mode of a single convolution."""
    function = engine(mode(function))
    function = click.option(
        "--arch", default=DEFAULT_TARGET, show_default=True, help="Architecture, e.g. sm_80."
    )(function)
    function = click.option("--dtype", default="bf16", show_default=True, help=STORAGE_TYPES)(function)
    return click.argument("length", type=int)(function)


def results_file(default: str, by: str = "") -> Callable[[Function], Function]:
    """``-o``, where measurements go. ``by``: the default in words, where it depends on other options."""
    return click.option(
        "-o",
        "--output",
        type=Place(path_type=Path),
        default=None if by else default,
        show_default=not by,
        help=f"Results. Default: {by}, e.g. {default}." if by else "Results.",
    )


def given(ctx: click.Context, besides: Collection[str]) -> list[str]:
    """The options that stand on the command line, as they are spelled first, but for those of some names."""
    return [
        p.opts[0]
        for p in ctx.command.params
        if isinstance(p, click.Option) and p.name not in besides
        if ctx.get_parameter_source(p.name or "") is ParameterSource.COMMANDLINE
    ]


def writable(*paths: Path | None) -> None:
    """Raise InputError, before there is something to lose, for files that cannot be written."""
    for path in filter(None, paths):
        with writing(path):
            check_writable(path.absolute())


def lengths(texts: tuple[str, ...]) -> list[int]:
    """``65536`` is a length, ``256..4194304`` every power of two from one to the other."""
    found: list[int] = []
    for text in texts:
        first, dots, last = text.partition(_RANGE)
        low = _number(first, text)
        if not dots:
            found.append(low)
            continue
        high = _number(last, text)
        powers = [1 << i for i in range(high.bit_length()) if low <= 1 << i <= high]
        if not powers:
            raise InputError(f"seqlen {text}: no power of two lies between {low} and {high}")
        found += powers
    return list(dict.fromkeys(found))


def _number(text: str, whole: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"seqlen {whole!r} is neither a length such as 65536 nor a range of powers of two such as "
            "256..65536"
        ) from None


def print_json(value: object) -> None:
    """The one document that ``--json`` prints."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text in columns, two blanks apart; the last column is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < len(row) - 1 else cell
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def plural(count: int, noun: str) -> str:
    """ "1 kernel", "3 kernels"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
