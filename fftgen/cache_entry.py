"""What the kernel cache holds: the key of an entry, its content, and the files it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from fftgen import nvrtc
from fftgen.compile_log import Resources
from fftgen.errors import ArtifactError, InternalError
from fftgen.source import Source

#: Number of the layout of an entry. It is part of every key: entries of another schema are never met.
SCHEMA = 1
META = "meta.json"
_SOURCE, _CUBIN, _PTX, _HEADERS = "kernel.cu", "kernel.cubin", "kernel.ptx", "headers/"


@dataclass(frozen=True)
class Key:
    """All that a cubin depends on, each field labelled; equal keys mean equal cubins.

    ``text`` and ``headers`` are the rendered source and the device headers; ``options`` the compiler options
    in their order; ``compiler`` the release of NVRTC; ``toolkit_headers`` the digest of the CUDA headers.
    ``name`` and ``entries`` travel along because they come back with the entry.
    A field of a wrong type, or empty where that cannot be, raises InternalError: a key is exact or none.
    """

    name: str
    entries: tuple[str, ...]
    text: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    options: tuple[str, ...]
    target: str
    compiler: str
    toolkit_headers: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for label in ("name", "text", "target", "compiler", "toolkit_headers"):
            value = getattr(self, label)
            if type(value) is not str or not value:
                raise InternalError(f"cache key: {label} must be a text that is not empty, got {value!r}")
        for label in ("entries", "options"):
            value = getattr(self, label)
            if type(value) is not tuple or not all(type(v) is str for v in value):
                raise InternalError(f"cache key: {label} must be a tuple of texts, got {value!r}")
        if not isinstance(self.headers, Mapping) or not all(
            type(k) is str and type(v) is str for k, v in self.headers.items()
        ):
            raise InternalError(f"cache key: headers must map names to texts, got {self.headers!r}")
        if type(self.schema) is not int:
            raise InternalError(f"cache key: schema must be an integer, got {self.schema!r}")

    @classmethod
    def of(cls, source: Source, target: str, extra: Iterable[str] = ()) -> Key:
        """The key of compiling ``source`` for ``target`` with the NVRTC and the headers at hand."""
        return cls(
            name=source.name,
            entries=source.entries,
            text=source.text,
            headers=source.headers,
            options=nvrtc.options(target, extra=extra),
            target=target,
            compiler=f"nvrtc {nvrtc.build()}",
            toolkit_headers=nvrtc.headers().digest(),
        )

    @property
    def digest(self) -> str:
        """SHA-256 (64 hexadecimal digits) over every field with its label.

        Labels, counts and lengths stand before what they describe, so no two keys give the same bytes.
        """
        total = hashlib.sha256(b"fftgen cache key\n")
        for label in fields(self):
            value = getattr(self, label.name)
            if isinstance(value, Mapping):
                parts = [part for item in sorted(value.items()) for part in item]
            elif isinstance(value, tuple):
                parts = list(value)
            else:
                parts = [str(value)]
            total.update(f"{label.name} {len(parts)}\n".encode())
            for part in parts:
                raw = part.encode()
                total.update(f"{len(raw)}\n".encode() + raw + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One kernel source compiled for one target."""

    source: Source = field(repr=False)
    target: str
    cubin: bytes = field(repr=False)
    ptx: str = field(repr=False)
    resources: Mapping[str, Resources]

    @classmethod
    def of(cls, source: Source, cubin: nvrtc.Cubin) -> Entry:
        """What the compiler made of a source."""
        return cls(source, cubin.arch, cubin.image, cubin.ptx, cubin.resources)


def to_files(key: Key, entry: Entry) -> dict[str, bytes]:
    """File name to content. ``meta.json`` holds length and digest of every other file and of itself."""
    if entry.source.text != key.text or dict(entry.source.headers) != dict(key.headers):
        raise InternalError(f"cache: the entry built for {key.name} comes from another source than its key")
    if entry.target != key.target:
        raise InternalError(f"cache: the entry built for {key.name} is for {entry.target}, not {key.target}")
    files = {
        _SOURCE: entry.source.text.encode(),
        _CUBIN: entry.cubin,
        _PTX: entry.ptx.encode(),
        **{_header_file(name): text.encode() for name, text in entry.source.headers.items()},
    }
    meta: dict[str, Any] = {
        "schema": SCHEMA,
        "key": key.digest,
        "name": key.name,
        "entries": list(key.entries),
        "target": entry.target,
        "compiler": key.compiler,
        "options": list(key.options),
        "toolkit_headers": key.toolkit_headers,
        "resources": {name: asdict(r) for name, r in entry.resources.items()},
        "files": {name: {"bytes": len(raw), "sha256": _sha(raw)} for name, raw in files.items()},
    }
    return {**files, META: _meta_bytes(meta)}


def read_meta(raw: bytes) -> dict[str, Any]:
    """The checked content of ``meta.json``. Raises ArtifactError when a byte of it is wrong."""
    try:
        meta = json.loads(raw)["meta"]
        whole = _meta_bytes(meta) == raw
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ArtifactError(f"{META} is damaged ({len(raw)} bytes that do not match their digest)")
    return dict(meta)


def from_files(digest: str, files: Mapping[str, bytes]) -> Entry:
    """The entry that ``to_files`` wrote. Raises ArtifactError that names the file that is wrong."""
    if META not in files:
        raise ArtifactError(f"{META} is missing")
    meta = read_meta(files[META])
    if meta["key"] != digest:
        raise ArtifactError(f"{META} belongs to key {meta['key']}, not to {digest}")
    for name, fact in meta["files"].items():
        raw = files.get(name)
        if raw is None:
            raise ArtifactError(f"{name} is missing")
        if len(raw) != fact["bytes"]:
            raise ArtifactError(f"{name} has {len(raw)} bytes instead of {fact['bytes']}")
        if _sha(raw) != fact["sha256"]:
            raise ArtifactError(f"{name} does not match its SHA-256")
    headers = {
        name.removeprefix(_HEADERS): files[name].decode()
        for name in meta["files"]
        if name.startswith(_HEADERS)
    }
    return Entry(
        source=Source(meta["name"], files[_SOURCE].decode(), headers, tuple(meta["entries"])),
        target=meta["target"],
        cubin=files[_CUBIN],
        ptx=files[_PTX].decode(),
        resources=MappingProxyType({name: Resources(**r) for name, r in meta["resources"].items()}),
    )


def _header_file(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise InternalError(f"cache: {name!r} is no name for a header")
    return _HEADERS + name


def _meta_bytes(meta: Mapping[str, Any]) -> bytes:
    """Canonical: the reader writes it again and compares, so that not even a blank can change unnoticed."""
    inner = json.dumps(meta, indent=1, sort_keys=True)
    return (
        json.dumps({"meta": meta, "sha256": _sha(inner.encode())}, indent=1, sort_keys=True) + "\n"
    ).encode()


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
