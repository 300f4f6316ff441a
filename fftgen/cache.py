"""The kernel cache: compiled kernels on disk, found by the digest of all they depend on.

Layout under ``<directory>/kernels/``::

    entries/ab/abcd.../     kernel.cu, headers/, kernel.cubin, kernel.ptx, meta.json
    locks/abcd....lock      held while the entry is being made; removed afterwards
    tmp/abcd....xyz/        an entry being written; renamed into place when it is on the disk
    damaged/abcd....xyz/    an entry whose digests did not match, kept to be looked at
    notes/abcd...           SHA-256 and content of what shortcut.py found out and could find out again

A hit takes no lock. On a miss one process compiles with the lock of the key held, the others wait and look
again. What lies in ``tmp`` while nobody holds its lock was left by a process that died.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fftgen import environment
from fftgen.cache_entry import META, Entry, Key, from_files, read_meta, to_files
from fftgen.durable import replace_file, sync_directory, unused, write_synced
from fftgen.errors import ArtifactError, InputError, InternalError, ToolchainError

if sys.platform != "win32":
    import fcntl

__all__ = ["Cache", "CacheMissError", "Entry", "Info", "Key"]

_complained: set[str] = set()


class CacheMissError(ToolchainError):
    """A kernel is not in the cache and FFTGEN_NO_JIT forbids compiling it."""


@dataclass(frozen=True)
class Info:
    """An entry as a listing shows it; ``problem`` says what is wrong with it, or is None."""

    digest: str
    name: str
    target: str
    compiler: str
    nbytes: int
    path: Path
    problem: str | None = None


class _Lock(enum.Enum):
    """How the attempt to lock a key ended. NONE: this system or file system has no locks.

    Renames alone then keep entries whole; two processes may compile the same kernel.
    """

    HELD = enum.auto()
    BUSY = enum.auto()
    NONE = enum.auto()


class Cache:
    """A store in one directory; ``directory=None`` keeps nothing and says nothing about it."""

    def __init__(self, directory: Path | str | None) -> None:
        self.directory = None if directory is None else Path(directory).absolute()

    @classmethod
    def default(cls) -> Cache:
        """The store that the environment asks for: FFTGEN_CACHE_DIR, $XDG_CACHE_HOME, ~/.cache.

        Where none of them says a directory, one warning, and a store that keeps nothing. Raises InputError
        when FFTGEN_CACHE_DIR is empty.
        """
        store = cls(environment.cache_directory())
        if store.directory is None:
            store._complain("there is no home directory")
        return store

    def get(self, key: Key) -> Entry | None:
        """The entry, or None when it is missing or damaged. Takes no lock and changes nothing."""
        return self.entry(key.digest)

    def entry(self, digest: str) -> Entry | None:
        """``get`` by the digest of a key."""
        try:
            return self._load(digest)
        except (ArtifactError, OSError):
            return None

    def get_or_build(self, key: Key, build: Callable[[], Entry], *, command: str = "fftgen build") -> Entry:
        """The entry; when it is missing ``build`` makes it, in one process and thread of those that ask.

        A damaged entry is set aside and made anew, with a warning. A directory that cannot be written gives
        one warning, and the entry is made without being kept. With FFTGEN_NO_JIT a miss raises
        CacheMissError, which names ``command``. Whatever ``build`` raises goes through.
        """
        where = "a cache: there is none" if self.directory is None else f"the cache {self.directory}"
        problem = f"is not in {where}"
        try:
            found = self._load(key.digest)
            if found is not None:
                return found
        except ArtifactError as error:
            problem = f"is damaged in the cache {self.directory} ({error})"
        except OSError as error:
            problem = f"cannot be read from the cache {self.directory} ({error})"
        if environment.no_jit():
            raise CacheMissError(
                f"kernel {key.name} for {key.target} {problem}, and {environment.NO_JIT.name} forbids "
                f"compiling: run '{command}' beforehand, or unset {environment.NO_JIT.name}"
            )
        if self.directory is None:
            return build()
        with contextlib.ExitStack() as held:
            try:
                root = self._root()
                state = held.enter_context(_lock(root, key.digest))
                if state is _Lock.HELD:
                    _remove_leftovers(root, key.digest)
                found = self._load_or_set_aside(root, key)
            except OSError as error:
                self._complain(error)
                return build()
            if found is not None:
                return found
            entry = build()
            try:
                self._store(root, key, entry)
            except OSError as error:
                self._complain(error)
            return entry

    def note(self, digest: str) -> bytes | None:
        """What ``keep_note`` kept; None when there is nothing, or nothing whole."""
        place = self._note(digest)
        if place is None:
            return None
        try:
            said, _, content = place.read_bytes().partition(b"\n")
        except OSError:
            return None
        return content if said.decode("latin-1") == hashlib.sha256(content).hexdigest() else None

    def keep_note(self, digest: str, content: bytes) -> None:
        """Keep bytes that can be found out again, whole or not at all; where they cannot be kept, nothing."""
        place = self._note(digest)
        if place is not None:
            with contextlib.suppress(OSError):
                place.parent.mkdir(parents=True, exist_ok=True)
                replace_file(place, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def entries(self) -> list[Info]:
        """What is in the store, by kernel name and target; files are not checked against their digests."""
        return sorted(
            (self._info(path) for path in self._paths()), key=lambda i: (i.name, i.target, i.digest)
        )

    def verify(self) -> list[Info]:
        """Read every entry in full and return the damaged ones, each with its ``problem``."""
        bad: list[Info] = []
        for path in self._paths():
            try:
                self._load(path.name)
            except (ArtifactError, OSError) as error:
                info = self._info(path)
                bad.append(Info(**{**vars(info), "problem": str(error)}))
        return bad

    def check(self) -> None:
        """Raise InputError where there can be no store to look at: no directory, a file in its place, or one
        that may not be read. One that is not made yet is an empty one."""
        way_out = f"set {environment.CACHE_DIR.name} to a directory"
        if self.directory is None:
            raise InputError(f"there is no cache without a home directory: {way_out}")
        try:
            with os.scandir(self.directory / "kernels"):
                pass
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(
                f"the cache {self.directory} cannot be read ({error.strerror or error}): {way_out}"
            ) from error

    def size(self) -> int:
        """Bytes in use, with entries set aside and unfinished ones."""
        return 0 if self.directory is None else _tree_bytes(self.directory / "kernels")

    def clear(self) -> int:
        """Remove every entry, those set aside and leftovers; return the bytes freed.

        Entries that other processes are making stay. Raises OSError when the directory cannot be changed.
        """
        if self.directory is None or not (self.directory / "kernels").is_dir():
            return 0
        root, before = self._root(), self.size()
        for path in self._paths():
            with _lock(root, path.name, wait=False) as state:
                if state is not _Lock.BUSY:
                    # Out of sight in one step: whoever looks finds the entry whole or not at all.
                    doomed = unused(root / "tmp", path.name)
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(path, doomed)
                        shutil.rmtree(doomed)
        shutil.rmtree(root / "damaged", ignore_errors=True)
        shutil.rmtree(root / "notes", ignore_errors=True)
        _sweep(root)
        return before - self.size()

    def _root(self) -> Path:
        if self.directory is None:
            raise InternalError("a cache without a directory has no root")
        root = self.directory / "kernels"
        for name in ("entries", "locks", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        return root

    def _place(self, digest: str) -> Path | None:
        if self.directory is None:
            return None
        return self.directory / "kernels" / "entries" / digest[:2] / digest

    def _note(self, digest: str) -> Path | None:
        return None if self.directory is None else self.directory / "kernels" / "notes" / digest

    def _paths(self) -> list[Path]:
        if self.directory is None:
            return []
        return sorted(self.directory.glob("kernels/entries/[0-9a-f][0-9a-f]/*"))

    def _load(self, digest: str) -> Entry | None:
        """None when there is no entry; ArtifactError when it is damaged; OSError when it cannot be read."""
        place = self._place(digest)
        if place is None or not place.exists():
            return None
        try:
            files = {META: (place / META).read_bytes()}
            for name in read_meta(files[META])["files"]:
                files[name] = (place / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ArtifactError(f"{Path(error.filename).relative_to(place)} is missing") from error
        return from_files(digest, files)

    def _load_or_set_aside(self, root: Path, key: Key) -> Entry | None:
        """With the lock held. A damaged entry goes to ``damaged``."""
        try:
            return self._load(key.digest)
        except ArtifactError as error:
            aside = root / "damaged"
            aside.mkdir(exist_ok=True)
            kept = unused(aside, key.digest)
            os.rename(root / "entries" / key.digest[:2] / key.digest, kept)
            warnings.warn(
                f"the cache entry of {key.name} for {key.target} was damaged ({error}): "
                f"it is kept in {kept}, and the kernel is compiled anew",
                RuntimeWarning,
                stacklevel=3,
            )
            return None

    def _store(self, root: Path, key: Key, entry: Entry) -> None:
        """With the lock held: write beside, put on the disk, rename into place."""
        _sweep(root)
        files = to_files(key, entry)
        temporary = unused(root / "tmp", key.digest)
        try:
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(temporary / name, content)
            for directory in {(temporary / name).parent for name in files}:
                sync_directory(directory)
            place = root / "entries" / key.digest[:2] / key.digest
            place.parent.mkdir(exist_ok=True)
            try:
                os.rename(temporary, place)
            except OSError:
                if not place.exists():  # else another process was faster, where there are no locks
                    raise
            sync_directory(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _info(self, path: Path) -> Info:
        name = target = compiler = "?"
        problem = None
        try:
            meta = read_meta((path / META).read_bytes())
            name, target, compiler = meta["name"], meta["target"], meta["compiler"]
        except (ArtifactError, OSError) as error:
            problem = str(error)
        return Info(path.name, name, target, compiler, _tree_bytes(path), path, problem)

    def _complain(self, problem: OSError | str) -> None:
        """One warning for each directory: that it cannot be used, and what to do."""
        if str(self.directory) in _complained:
            return
        _complained.add(str(self.directory))
        cache = "the kernel cache" if self.directory is None else f"the kernel cache {self.directory}"
        warnings.warn(
            f"{cache} cannot be used ({problem}): kernels are compiled anew in every "
            f"process; set {environment.CACHE_DIR.name} to a writable directory",
            RuntimeWarning,
            stacklevel=3,
        )


@contextlib.contextmanager
def _lock(root: Path, digest: str, wait: bool = True) -> Iterator[_Lock]:
    """Try to hold the lock of a key; without ``wait`` another holder gives BUSY at once.

    The file is removed by its holder. A waiter may therefore wake up with the lock of a file that has lost
    its name, and then begins again.
    """
    path = root / "locks" / f"{digest}.lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            state = _take(handle, wait)
            if state is not _Lock.HELD or _same_file(handle, path):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        yield state
    finally:
        if state is _Lock.HELD:
            with contextlib.suppress(OSError):
                path.unlink()
            # Not by closing alone: a child forked meanwhile has the same open file and would keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _take(handle: int, wait: bool) -> _Lock:
    if sys.platform == "win32":
        return _Lock.NONE
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return _Lock.BUSY
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
            return _Lock.NONE
        raise
    return _Lock.HELD


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sweep(root: Path) -> None:
    """Remove what dead processes left in ``tmp`` and ``locks``: all whose lock nobody holds."""
    for digest in {path.name.split(".")[0] for name in ("tmp", "locks") for path in (root / name).iterdir()}:
        with contextlib.suppress(OSError), _lock(root, digest, wait=False) as state:
            if state is _Lock.HELD:
                _remove_leftovers(root, digest)


def _remove_leftovers(root: Path, digest: str) -> None:
    for path in (root / "tmp").glob(f"{digest}.*"):
        shutil.rmtree(path, ignore_errors=True)


def _tree_bytes(root: Path) -> int:
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                total += path.stat().st_size
    return total
