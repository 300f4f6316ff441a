"""``fftgen render``: the CUDA source of a convolution."""

from __future__ import annotations

from pathlib import Path

import click

from fftgen import api
from fftgen.cli.options import Place, common, one_problem, print_json
from fftgen.durable import write_out, writing
from fftgen.errors import InputError
from fftgen.planner import gradient_sections, search, sections, twins
from fftgen.planner.gradient import backward, gradient
from fftgen.planner.gradient_plan import Gradient
from fftgen.planner.plan import Plan
from fftgen.problem import Problem
from fftgen.render import command as command_of
from fftgen.render import gradient_command, render, render_gradient
from fftgen.source import Source
from fftgen.targets import Target
from fftgen.targets import target as find_target


@click.command("render")
@one_problem
@click.option("-o", "--output", type=Place(path_type=Path), help="File to write. Default, and -: stdout.")
@click.option("--headers", is_flag=True, help="Put the device headers in: one file that compiles by itself.")
@click.option("--gradient", "of_filter", is_flag=True, help="The kernels of the filter's gradient instead.")
@click.option("--backward", "whole_pass", is_flag=True, help="The kernels of all gradients by one pass.")
@click.option("--twin", "twice", is_flag=True, help="The kernels that store each result with two gates.")
@click.option("--sections", "points", type=int, help="The kernels of rows in sections of so many points.")
@click.option("--both-ways", is_flag=True, help="With --sections: of filters that act backwards as well.")
@click.option("--spread", "spread_out", is_flag=True, help="With --sections: clusters of blocks share a row.")
@common
def command(
    length: int,
    dtype: str,
    arch: str,
    causal: bool,
    engine: str | None,
    output: Path | None,
    headers: bool,
    of_filter: bool,
    whole_pass: bool,
    twice: bool,
    points: int | None,
    both_ways: bool,
    spread_out: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Print the CUDA source for a convolution of LENGTH.

    This is the command that stands at the head of every generated file; it gives the same bytes again.
    """
    if (of_filter or whole_pass) and engine is not None:
        raise InputError("the kernels of a gradient have an engine of their own: leave --engine out")
    if of_filter + whole_pass + twice > 1:
        raise InputError("--gradient, --backward and --twin are of different modules: ask for one of them")
    if points is not None and (of_filter or twice or engine is not None):
        raise InputError("of rows in sections there are convolutions and, with --backward, all gradients")
    if both_ways and (points is None or whole_pass or not causal):
        raise InputError("--both-ways goes with --causal and --sections; those of a circle take both anyway")
    if spread_out and points is None:
        raise InputError("--spread goes with --sections: it says how clusters of blocks take a row's")
    asked, chip = api.problem(length, dtype, causal=causal), find_target(arch)
    subject: Plan | Gradient
    if points is not None:
        cut = _in_sections(asked, chip, points, both_ways, spread_out)
        subject = gradient_sections.in_sections(cut) if whole_pass else cut
    elif of_filter or whole_pass:
        found = gradient(asked, chip) if of_filter else backward(asked, chip)
        if found is None:
            raise InputError(
                f"no kernels make all gradients of {asked.mode} {asked.length} {asked.dtype} on {arch} by "
                "one pass: there are some for causal convolutions on the engine mma, and on simt for lengths "
                "of which a block holds two rows or none; --gradient renders those of the filter's"
            )
        subject = found
    else:
        subject = api.plan(length, dtype, causal=causal, target=arch, engine=engine)
        if twice:
            both = twins.twin(subject)
            if both is None:
                raise InputError(
                    f"the engine {subject.engine} has no kernels with two outputs: leave --twin out"
                )
            subject = both
    if isinstance(subject, Gradient):
        source, how = render_gradient(subject), gradient_command(subject)
    else:
        source, how = render(subject), command_of(subject)
    text = whole(source) if headers else source.text
    if verbose:
        click.echo(f"{subject}\ndigest {subject.digest}", err=True)
    if output == Path("-"):
        output = None
    if output is not None:
        with writing(output):
            write_out(output, text.encode())
    if as_json:
        included = {} if headers else dict(source.headers)
        print_json({"name": source.name, "command": how, "text": text, "headers": included})
    elif output is None:
        click.echo(text, nl=False)


def _in_sections(asked: Problem, chip: Target, points: int, both_ways: bool, spread_out: bool) -> Plan:
    """The plan of a problem in sections. Raises InputError where there is none, with those that there are."""
    every = sections.of(asked, lambda p: search.plan(p, chip), both_ways)
    there = [plan for plan in every if plan.spread == spread_out]
    for plan in there:
        if plan.transform == points:
            return plan
    others = ", ".join(str(plan.transform) for plan in there) or "none"
    raise InputError(
        f"{asked.mode} {asked.length} {asked.dtype} has no {'spread ' * spread_out}sections of {points} "
        f"points on {chip.name}: there are {others}"
    )


def whole(source: Source) -> str:
    """The source with every device header in the place of its first ``#include``."""
    seen: set[str] = set()

    def expand(text: str) -> str:
        lines = []
        for line in text.splitlines(keepends=True):
            name = line.removeprefix('#include "').rstrip().removesuffix('"')
            if not line.startswith('#include "') or name not in source.headers:
                lines.append(line)
            elif name not in seen:
                seen.add(name)
                lines.append(f"// {name}\n{expand(source.headers[name])}".replace("#pragma once\n", ""))
        return "".join(lines)

    return expand(source.text)
