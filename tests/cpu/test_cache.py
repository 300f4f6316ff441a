"""The kernel cache: exact keys, one compile, no damage, whatever happens to the process or the disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from fftgen import cache as cache_module
from fftgen import cache_entry
from fftgen.cache import Cache, CacheMissError, Entry, Key
from fftgen.compile_log import Resources
from fftgen.errors import ArtifactError, InternalError
from fftgen.source import Source

SOURCE = Source("conv.cu", "__global__ void conv() {}\n", {"fftgen/a.cuh": "// ü\n", "b.cuh": ""}, ("conv",))
KEY = Key(
    name="conv.cu",
    entries=("conv",),
    text=SOURCE.text,
    headers=SOURCE.headers,
    options=("--gpu-architecture=sm_90", "-std=c++17"),
    target="sm_90",
    compiler="nvrtc 13.5.37",
    toolkit_headers="0" * 64,
)
ENTRY = Entry(SOURCE, "sm_90", bytes(range(256)), ".version 9.0\n", {"conv": Resources(40, 4, 8, 16, 1024)})


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FFTGEN_NO_JIT", raising=False)
    monkeypatch.setattr(cache_module, "_complained", set())


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Builder:
    """A compiler that counts."""

    def __init__(self, entry: Entry = ENTRY) -> None:
        self.entry, self.calls = entry, 0

    def __call__(self) -> Entry:
        self.calls += 1
        return self.entry


def never() -> Entry:
    raise AssertionError("compiled although the cache has it")


def files_of(store: Cache) -> list[Path]:
    (info,) = store.entries()
    return sorted(p for p in info.path.rglob("*") if p.is_file())


def leftovers(store: Cache) -> list[Path]:
    assert store.directory
    return [p for name in ("tmp", "locks") for p in (store.directory / "kernels" / name).iterdir()]


# --- keys


def test_equal_fields_give_equal_digests_in_any_order_of_headers() -> None:
    turned = dataclasses.replace(KEY, headers=dict(reversed(list(KEY.headers.items()))))
    assert turned.digest == KEY.digest == dataclasses.replace(KEY).digest
    assert len(KEY.digest) == 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "conv2.cu"),
        ("entries", ("conv", "other")),
        ("text", KEY.text + " "),
        ("headers", {"fftgen/a.cuh": "// ü\n"}),
        ("headers", {"fftgen/a.cuh": "// ü\n", "b.cuh": " "}),
        ("headers", {"fftgen/a.cuh": "// ü\n", "c.cuh": ""}),
        ("options", (*KEY.options, "-DX")),
        ("options", KEY.options[::-1]),
        ("options", ("--gpu-architecture=sm_90-std=c++17",)),
        ("target", "sm_80"),
        ("compiler", "nvrtc 13.5.38"),
        ("toolkit_headers", "1" * 64),
        ("schema", KEY.schema + 1),
    ],
)
def test_each_field_changes_the_digest(field: str, value: Any) -> None:
    assert dataclasses.replace(KEY, **{field: value}).digest != KEY.digest


def test_every_field_of_the_key_is_among_those_tried() -> None:
    marks = test_each_field_changes_the_digest.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == {f.name for f in dataclasses.fields(Key)}


def test_moving_text_from_one_field_to_another_changes_the_digest() -> None:
    one = dataclasses.replace(KEY, headers={"a": "x\n1\ny"})
    two = dataclasses.replace(KEY, headers={"a": "x", "y": ""})
    three = dataclasses.replace(KEY, options=("a\n1\nb",))
    four = dataclasses.replace(KEY, options=("a", "b"))
    assert len({k.digest for k in (one, two, three, four)}) == 4


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Key)])
@pytest.mark.parametrize("value", [None, b"bytes", 1.5])
def test_a_field_that_is_not_exact_is_no_key(field: str, value: object) -> None:
    with pytest.raises(InternalError, match=field):
        dataclasses.replace(KEY, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("text", ""), ("compiler", ""), ("options", ("a", None)), ("headers", {"a": None})]
)
def test_an_empty_or_unknown_part_is_no_key(field: str, value: Any) -> None:
    with pytest.raises(InternalError, match=field):
        dataclasses.replace(KEY, **{field: value})


# --- hits and misses


def test_a_miss_builds_and_the_next_look_finds_the_same_entry(store: Cache) -> None:
    builder = Builder()
    assert store.get(KEY) is None
    assert store.get_or_build(KEY, builder) == ENTRY
    assert store.get_or_build(KEY, never) == ENTRY
    assert store.get(KEY) == ENTRY
    assert builder.calls == 1
    assert leftovers(store) == []


def test_an_entry_is_a_directory_that_can_be_read(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    (info,) = store.entries()
    assert (info.name, info.target, info.compiler) == ("conv.cu", "sm_90", "nvrtc 13.5.37")
    assert (info.path / "kernel.cu").read_text() == SOURCE.text
    assert (info.path / "headers/fftgen/a.cuh").read_text() == "// ü\n"
    assert (info.path / "kernel.cubin").read_bytes() == ENTRY.cubin
    assert info.nbytes == store.size() == sum(p.stat().st_size for p in files_of(store))
    assert store.verify() == []


def test_clearing_removes_entries_and_nothing_else(store: Cache) -> None:
    assert store.clear() == 0
    store.get_or_build(KEY, lambda: ENTRY)
    assert store.directory
    (store.directory / "precious.txt").write_text("mine")
    size = store.size()
    assert store.clear() == size > 0
    assert store.entries() == []
    assert store.size() == 0
    assert (store.directory / "precious.txt").read_text() == "mine"
    builder = Builder()
    store.get_or_build(KEY, builder)
    assert builder.calls == 1


def test_an_error_of_the_builder_goes_through_and_leaves_nothing(store: Cache) -> None:
    def broken() -> Entry:
        raise OSError("the compiler lost a file")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match="the compiler lost a file"):
            store.get_or_build(KEY, broken)
    assert leftovers(store) == []
    assert store.get_or_build(KEY, lambda: ENTRY) == ENTRY


def test_an_entry_of_another_source_or_target_is_refused(store: Cache) -> None:
    other = Source("conv.cu", "// other\n", SOURCE.headers, SOURCE.entries)
    for wrong in (dataclasses.replace(ENTRY, source=other), dataclasses.replace(ENTRY, target="sm_80")):
        with pytest.raises(InternalError):
            store.get_or_build(KEY, lambda wrong=wrong: wrong)
    assert store.entries() == []


def test_a_header_name_cannot_leave_the_entry(store: Cache) -> None:
    for name in ("../up.cuh", "/etc/passwd", "a/../../b", "a//b"):
        source = Source("conv.cu", SOURCE.text, {name: ""}, ("conv",))
        key = dataclasses.replace(KEY, headers={name: ""})
        with pytest.raises(InternalError, match="no name for a header"):
            store.get_or_build(key, lambda source=source: dataclasses.replace(ENTRY, source=source))


def test_no_jit_names_the_kernel_and_the_command_on_a_miss(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    with pytest.raises(
        CacheMissError, match=r"conv\.cu for sm_90 is not in the cache .*'fftgen build --seqlen 8'"
    ):
        store.get_or_build(KEY, never, command="fftgen build --seqlen 8")
    monkeypatch.delenv("FFTGEN_NO_JIT")
    store.get_or_build(KEY, lambda: ENTRY)
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    assert store.get_or_build(KEY, never) == ENTRY
    files_of(store)[0].unlink()
    with pytest.raises(CacheMissError, match=r"is damaged in the cache"):
        store.get_or_build(KEY, never)


def test_the_default_store_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "one"))
    assert Cache.default().directory == tmp_path / "one"


# --- damage


def test_one_flipped_byte_anywhere_is_noticed(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    count = 0
    for path in files_of(store):
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert store.get(KEY) is None, (path, at)
            count += 1
        path.write_bytes(whole)
    assert count > 1000
    assert store.get(KEY) == ENTRY


def test_every_truncation_and_every_missing_file_is_noticed(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    for path in files_of(store):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            assert store.get(KEY) is None, (path, length)
        path.unlink()
        assert store.get(KEY) is None
        path.mkdir()
        assert store.get(KEY) is None
        path.rmdir()
        path.write_bytes(whole)
    assert store.get(KEY) == ENTRY


def test_a_damaged_entry_is_set_aside_and_built_anew(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    (info,) = store.entries()
    (info.path / "kernel.cubin").write_bytes(b"garbage")
    (bad,) = store.verify()
    assert bad.problem == "kernel.cubin has 7 bytes instead of 256"
    builder = Builder()
    with pytest.warns(
        RuntimeWarning, match=r"conv\.cu for sm_90 was damaged \(kernel\.cubin has 7 bytes"
    ) as caught:
        assert store.get_or_build(KEY, builder) == ENTRY
    assert caught[0].filename == __file__
    assert builder.calls == 1
    assert store.verify() == []
    assert store.directory
    (kept,) = (store.directory / "kernels/damaged").iterdir()
    assert (kept / "kernel.cubin").read_bytes() == b"garbage"
    assert store.clear() > 0
    assert store.size() == 0


def test_an_entry_copied_to_another_key_is_noticed(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    (info,) = store.entries()
    other = dataclasses.replace(KEY, compiler="nvrtc 99.0.0")
    place = info.path.parent.parent / other.digest[:2] / other.digest
    shutil.copytree(info.path, place)
    assert store.get(other) is None
    assert [b.problem for b in store.verify()] == [
        f"meta.json belongs to key {KEY.digest}, not to {other.digest}"
    ]


def test_a_listing_shows_an_entry_whose_meta_is_gone(store: Cache) -> None:
    store.get_or_build(KEY, lambda: ENTRY)
    (info,) = store.entries()
    (info.path / "meta.json").write_text("[" * 100_000)
    (bad,) = store.entries()
    assert bad.problem
    assert "meta.json is damaged" in bad.problem
    with pytest.raises(ArtifactError):
        cache_entry.from_files(KEY.digest, {})


# --- directories that cannot be used


def test_a_directory_that_cannot_be_made_gives_one_warning_and_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Cache(tmp_path / "file" / "cache")
    builder = Builder()
    with pytest.warns(RuntimeWarning, match="FFTGEN_CACHE_DIR") as caught:
        assert [store.get_or_build(KEY, builder) for _ in range(2)] == [ENTRY, ENTRY]
    assert builder.calls == 2
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert store.entries() == store.verify() == []
    assert store.size() == store.clear() == 0


def test_a_cache_that_keeps_nothing_on_purpose_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    store, builder = Cache(None), Builder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [store.get_or_build(KEY, builder) for _ in range(2)] == [ENTRY, ENTRY]
    assert builder.calls == 2
    assert store.get(KEY) is None
    assert store.entries() == store.verify() == []
    assert store.size() == store.clear() == 0
    monkeypatch.setenv("FFTGEN_NO_JIT", "1")
    with pytest.raises(CacheMissError, match=r"conv\.cu for sm_90 is not in a cache: there is none, and"):
        store.get_or_build(KEY, never)


def test_without_a_home_one_warning_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module.environment, "cache_directory", lambda: None)
    with pytest.warns(RuntimeWarning, match="no home directory.*FFTGEN_CACHE_DIR") as caught:
        stores = [Cache.default(), Cache.default()]
    assert len(caught) == 1
    assert [store.get_or_build(KEY, lambda: ENTRY) for store in stores] == [ENTRY, ENTRY]


def test_a_full_disk_gives_one_warning_and_leaves_no_part(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache_module.write_synced

    def full(path: Path, content: bytes) -> None:
        if path.name == "kernel.cubin":
            path.write_bytes(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(cache_module, "write_synced", full)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        assert [store.get_or_build(KEY, lambda: ENTRY) for _ in range(2)] == [ENTRY, ENTRY]
    assert len(caught) == 1
    assert leftovers(store) == []
    assert store.entries() == []
    monkeypatch.setattr(cache_module, "write_synced", real)
    assert store.get_or_build(KEY, lambda: ENTRY) == ENTRY
    assert len(store.entries()) == 1


def test_a_read_only_directory_still_gives_its_hits(store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store.get_or_build(KEY, lambda: ENTRY)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", denied)
    monkeypatch.setattr(os, "rename", denied)
    assert store.get_or_build(KEY, never) == ENTRY
    other = dataclasses.replace(KEY, compiler="nvrtc 99.0.0")
    with pytest.warns(RuntimeWarning, match="Permission denied"):
        assert store.get_or_build(other, lambda: ENTRY) == ENTRY
    assert leftovers(store) == []


@pytest.mark.skipif(os.name == "nt", reason="no locks on this system")
def test_a_file_system_without_locks_still_keeps_entries(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    other = dataclasses.replace(KEY, compiler="nvrtc 99.0.0")

    def meanwhile() -> Entry:
        # Without locks another process may finish the same kernel first; and its open work must stay.
        with contextlib.suppress(FileExistsError):
            assert store.directory
            (store.directory / "kernels/tmp" / f"{other.digest}.00").mkdir(parents=True)
        store.get_or_build(KEY, lambda: ENTRY) if not store.entries() else None
        return ENTRY

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get_or_build(KEY, meanwhile) == ENTRY
        assert store.get_or_build(KEY, never) == ENTRY
    assert store.directory
    assert [p.name for p in (store.directory / "kernels/tmp").iterdir()] == [f"{other.digest}.00"]
    assert store.clear() > 0


# --- many at once

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cache import ENTRY, KEY, Cache
place = Path(sys.argv[1])
def build():
    (place / "builds" / sys.argv[2]).write_text("")
    time.sleep(0.3)
    return ENTRY
(place / "ready" / sys.argv[2]).write_text("")
while not (place / "go").exists():
    time.sleep(0.002)
assert Cache(place / "cache").get_or_build(KEY, build) == ENTRY
"""


def test_of_several_processes_exactly_one_compiles(tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    (tmp_path / "ready").mkdir()
    code = WORKER.format(tests=str(Path(__file__).parent))
    workers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(tmp_path), str(i)]) for i in range(5)
    ]
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "ready").iterdir())) < len(workers) and time.monotonic() < deadline:
        time.sleep(0.005)
    (tmp_path / "go").write_text("")
    assert [w.wait(timeout=60) for w in workers] == [0] * len(workers)
    assert len(list((tmp_path / "builds").iterdir())) == 1
    store = Cache(tmp_path / "cache")
    assert len(store.entries()) == 1
    assert leftovers(store) == []


def test_of_several_threads_exactly_one_compiles(store: Cache) -> None:
    calls: list[int] = []
    start = threading.Barrier(8)

    def build() -> Entry:
        calls.append(1)
        time.sleep(0.1)
        return ENTRY

    results: list[Entry] = []

    def work() -> None:
        start.wait()
        results.append(store.get_or_build(KEY, build))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == [ENTRY] * 8
    assert len(calls) == 1
    assert leftovers(store) == []


@pytest.mark.skipif(os.name == "nt", reason="no locks on this system")
def test_a_lock_whose_file_was_removed_by_its_last_holder_is_taken_again(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = store._root()
    real, seen = cache_module._take, []

    def after_the_holder_left(handle: int, wait: bool) -> Any:
        if not seen:
            (root / "locks" / "ab.lock").unlink()
        seen.append(handle)
        return real(handle, wait)

    monkeypatch.setattr(cache_module, "_take", after_the_holder_left)
    with cache_module._lock(root, "ab") as first, cache_module._lock(root, "ab", wait=False) as second:
        assert (first, second) == (cache_module._Lock.HELD, cache_module._Lock.BUSY)
    assert len(seen) == 3
    assert leftovers(store) == []


def test_different_kernels_do_not_wait_for_each_other(store: Cache) -> None:
    other = dataclasses.replace(KEY, compiler="nvrtc 99.0.0")

    def slow() -> Entry:
        done: list[Entry] = []
        thread = threading.Thread(target=lambda: done.append(store.get_or_build(other, lambda: ENTRY)))
        thread.start()
        thread.join(timeout=20)
        assert done == [ENTRY]
        return ENTRY

    store.get_or_build(KEY, slow)
    assert len(store.entries()) == 2


def test_clearing_leaves_what_others_are_making(store: Cache) -> None:
    def build() -> Entry:
        store.clear()
        return ENTRY

    store.get_or_build(KEY, build)
    assert store.get(KEY) == ENTRY


# --- kill -9

KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cache import ENTRY, KEY, Cache, never
import dataclasses
OTHER = dataclasses.replace(KEY, compiler="nvrtc 99.0.0")
WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "os.chmod")
step, kill_at = 0, 0
def hook(event, args):
    global step
    if kill_at and event in WATCHED:
        step += 1
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
root, scenario = Path(sys.argv[1]), sys.argv[2]
point = 0
while True:
    point += 1
    store = Cache(root / str(point))
    if scenario == "damaged":
        store.get_or_build(KEY, lambda: ENTRY)
        (store.entries()[0].path / "kernel.ptx").write_text("damage")
    child = os.fork()
    if child == 0:
        kill_at = point
        import warnings
        warnings.simplefilter("ignore")
        store.get_or_build(KEY, lambda: ENTRY)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    # Another kernel first: it must sweep up what was left by the dead without touching anything whole.
    store.get_or_build(OTHER, lambda: ENTRY)
    assert [p for n in ("tmp", "locks") for p in (store.directory / "kernels" / n).iterdir()] == [], point
    bad = store.verify()
    assert not bad or scenario == "damaged", (point, bad)
    assert store.get_or_build(KEY, lambda: ENTRY) == ENTRY
    assert store.get_or_build(KEY, never) == ENTRY
    assert store.verify() == []
    assert len(store.entries()) == 2
print(point)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("scenario", ["missing", "damaged"])
def test_a_process_killed_at_any_step_leaves_nothing_that_harms(tmp_path: Path, scenario: str) -> None:
    """The child is killed before its first, second, ... file system operation, until it gets through."""
    code = KILLED.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), scenario],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
