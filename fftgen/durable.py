"""Writing files so that a crash at any moment leaves the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


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


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all; an existing file stays as it is until the new one is on the disk.

    Raises OSError; then no temporary file is left behind.
    """
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


def unused(directory: Path, stem: str) -> Path:
    """A name in ``directory`` that nothing has: ``stem``, a dot and 16 random digits."""
    return directory / f"{stem}.{secrets.token_hex(8)}"
