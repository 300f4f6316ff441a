"""``fftgen cache``: the kernels kept on this machine."""

from __future__ import annotations

import click

from fftgen import environment
from fftgen.cache import Cache, Info
from fftgen.cli.options import common, plural, print_json, table
from fftgen.errors import InputError


@click.group("cache")
def command() -> None:
    """Look at the kernel cache, check it, or empty it."""


@command.command("list")
@common
def list_entries(as_json: bool, verbose: bool) -> None:
    """List the compiled kernels."""
    store = _store()
    found = store.entries()
    if as_json:
        print_json({"directory": str(store.directory), "entries": [_document(i) for i in found]})
        return
    if found:
        click.echo(table([_row(i, verbose) for i in found]))
    click.echo(f"{plural(len(found), 'kernel')} in {store.directory}")


@command.command("size")
@common
def size(as_json: bool, verbose: bool) -> None:
    """Say how many bytes the cache takes."""
    store = _store()
    nbytes = store.size()
    if as_json:
        print_json({"directory": str(store.directory), "bytes": nbytes, "entries": len(store.entries())})
        return
    click.echo(f"{nbytes} bytes in {store.directory}")


@command.command("clear")
@common
def clear(as_json: bool, verbose: bool) -> None:
    """Remove every kernel; those that another process is making stay."""
    store = _store()
    try:
        freed = store.clear()
    except OSError as error:
        raise InputError(f"the cache {store.directory} cannot be emptied: {error}") from error
    if as_json:
        print_json({"directory": str(store.directory), "freed_bytes": freed})
        return
    click.echo(f"{freed} bytes freed in {store.directory}")


@command.command("verify")
@common
@click.pass_context
def verify(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """Read every kernel in full against its digests; exit with 1 if one is damaged.

    A damaged kernel does no harm: it is set aside and compiled anew when it is wanted.
    """
    store = _store()
    total, bad = len(store.entries()), store.verify()
    if as_json:
        print_json(
            {"directory": str(store.directory), "entries": total, "damaged": [_document(i) for i in bad]}
        )
    else:
        for info in bad:
            click.echo(f"{info.name} {info.target}: {info.problem} ({info.path})")
        click.echo(f"{plural(total, 'kernel')}, {len(bad)} damaged in {store.directory}")
    if bad:
        ctx.exit(1)


def _store() -> Cache:
    """The store that the environment asks for. Raises InputError where there can be none."""
    store = Cache(environment.cache_directory())  # Cache.default would warn of what is an error here
    store.check()
    return store


def _row(info: Info, verbose: bool) -> tuple[str, ...]:
    row = (info.name, info.target, info.compiler, f"{info.nbytes} bytes", info.problem or "")
    return (*row, str(info.path)) if verbose else row


def _document(info: Info) -> dict[str, object]:
    return {
        "digest": info.digest,
        "name": info.name,
        "target": info.target,
        "compiler": info.compiler,
        "bytes": info.nbytes,
        "path": str(info.path),
        "problem": info.problem,
    }
