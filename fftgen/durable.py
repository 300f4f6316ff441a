"""Writing files so that a crash at any moment leaves the old content or the new one, never a part; and what
files are read and written at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fftgen.errors import FFTGenError, InputError


def write_synced(path: Path, content: bytes, mode: int | None = None) -> None:
    """Create ``path`` (which must not exist) and return when its content is on the disk. Raises OSError.

    ``mode`` are the permissions, by default those of a plain ``open``.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(handle, "wb") as file:
        if mode is not None:
            os.chmod(path, mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk, where the system can do that."""
    # Windows opens no directories, and some network file systems sync none: renames are atomic all the same.
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replaceable(path: Path) -> Path:
    """The regular file that ``path`` leads to, which need not be there: a new one may take its place.

    Links are followed, as ``open`` does, and stay. Raises OSError for a directory, a device or a FIFO: a
    rename would put a file in their place.
    """
    with contextlib.suppress(FileNotFoundError):
        _expect_regular(path)
    return Path(os.path.realpath(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read; links are followed. Raises OSError, also for what is none.

    It is looked at before it is opened: opening a FIFO waits for a writer, for ever if none comes.
    """
    _expect_regular(path)
    return path.open("rb")


def _expect_regular(path: Path) -> None:
    """Raise OSError unless ``path`` leads to a regular file."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def check_writable(path: Path, *, made: bool = False) -> None:
    """Raise the OSError that ``replace_file`` would, as far as it can be known before there is content.

    ``made``: directories on the way that do not exist yet will be made. Nothing is left behind.
    """
    real = replaceable(path)
    there = next(p for p in real.parents if p.exists()) if made else real.parent
    with tempfile.TemporaryFile(dir=there):  # permission bits do not tell of read-only file systems
        pass


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all; an existing file stays as it is until the new one is on the disk.

    Raises OSError, also for what is no regular file (``replaceable``); then no temporary file is left behind.
    """
    path = replaceable(path)
    temporary = unused(path.parent, f".{path.name}")
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    try:
        write_synced(temporary, content, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_out(path: Path, content: bytes) -> None:
    """``replace_file``; into a device or a FIFO, which nothing replaces, the content is written.

    Raises OSError.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
    else:
        replace_file(path, content)


@contextlib.contextmanager
def writing(what: object, kind: type[FFTGenError] = InputError) -> Iterator[None]:
    """An OSError about a file, ``what`` in words, as the error that tells the cause and what can be done."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise kind(f"{what} cannot be written ({cause}): {way_out(error)}") from error


def way_out(error: OSError) -> str:
    """What to do about a file that could not be written, by the cause."""
    cause = errno.errorcode.get(error.errno or 0)
    if cause in ("ENOSPC", "EDQUOT"):
        return "make room there, or name a file on another disk"
    if cause == "EISDIR":
        return "name a file in it"
    if cause in ("ENOENT", "ENOTDIR", "EEXIST"):  # the last: a file stands where a directory would be made
        return "name a directory that exists"
    if cause in ("EACCES", "EPERM", "EROFS"):
        return "name a writable directory"
    return "name another file"


def unused(directory: Path, stem: str) -> Path:
    """A name in ``directory`` that nothing has: ``stem``, a dot and 16 random digits."""
    return directory / f"{stem}.{secrets.token_hex(8)}"
