"""The artifact: one file with all that a set of kernels needs at run time; loading it executes nothing.

The container is safetensors: eight bytes of length, a JSON header, byte tensors. Every tensor is named
``<module>/<part>`` and its SHA-256 stands in the header; the header's own SHA-256 is taken with 64 zeros in
the place of that digest. So a changed or missing byte anywhere is noticed and named. The digests inside
protect against accident; against a forger compare the whole file's, ``read(path, sha256=...)``.
The same content gives the same file: no dates, no paths, sorted names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fftgen.compile_log import Resources
from fftgen.durable import open_regular, replace_file, writing
from fftgen.errors import ArtifactError, InputError, InternalError
from fftgen.source import Source
from fftgen.targets import INTEGRATED

#: Number of the layout, and of that of what kernels are handed (launch.py). A reader takes this one; how the
#: header is digested stays the same in every schema.
SCHEMA = 6
_LONGEST_HEADER = 100_000_000  # bytes: that of safetensors
_FORMAT = "fftgen"
_BLANK = "0" * 64
_TARGET = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


class UnreadableError(ArtifactError, InputError):
    """What was named as an artifact is not there, is no regular file, or may not be read: name another."""


class Image(NamedTuple):
    """Code to hand to the driver. ``kind`` is "cubin" or "ptx"; ``target`` as in "sm_90" or "compute_80"."""

    kind: str
    target: str
    data: bytes

    def __repr__(self) -> str:
        return f"Image({self.kind} for {self.target}, {len(self.data)} bytes)"


@dataclass(frozen=True)
class Module:
    """The kernels of one plan, compiled for one or more targets.

    ``plan`` is the planner's JSON and ``plan_digest`` its digest there; both are carried, not interpreted.
    ``cubins`` and ``ptx`` map targets ("sm_90", "compute_80") to code, ``tables`` names to raw bytes,
    ``resources`` targets to what each kernel takes.
    """

    name: str
    plan: bytes
    plan_digest: str
    source: Source
    cubins: Mapping[str, bytes] = field(default_factory=dict)
    ptx: Mapping[str, bytes] = field(default_factory=dict)
    tables: Mapping[str, bytes] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, Resources]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name, re.ASCII):
            raise InternalError(f"{self.name!r} is no name for a module: letters, digits and _.+- only")
        for label, kind in (("cubins", "sm"), ("ptx", "compute"), ("resources", "sm")):
            for target in getattr(self, label):
                found = _TARGET.fullmatch(target)
                if found is None or found[1] != kind:
                    raise InternalError(f"module {self.name}: {target!r} is no target for {label}")
        if not self.cubins and not self.ptx:
            raise InternalError(f"module {self.name} holds no code: give it a cubin or PTX")
        for label in ("cubins", "ptx", "tables", "resources"):
            object.__setattr__(self, label, MappingProxyType(dict(sorted(getattr(self, label).items()))))

    def __repr__(self) -> str:
        """What it is and how large: the content, megabytes of it, would hide that."""
        held = [*self.cubins, *self.ptx]
        return f"Module({self.name}, for {', '.join(held)}, {sum(len(raw) for _, raw in _parts(self))} bytes)"

    def image_for(self, capability: tuple[int, int]) -> Image:
        """The code for a GPU of compute capability (major, minor).

        A cubin made for this very chip ("sm_90a", then "sm_90"), else one of the same major and the nearest
        lower minor version, else the newest PTX that the chip takes. Raises ArtifactError that names what is
        there.
        """
        cubins = [(_rank(t), t) for t in self.cubins if _runs(t, capability)]
        if cubins:
            target = max(cubins)[1]
            return Image("cubin", target, self.cubins[target])
        texts = [(_rank(t), t) for t in self.ptx if _runs(t, capability)]
        if texts:
            target = max(texts)[1]
            return Image("ptx", target, self.ptx[target])
        needed = f"sm_{capability[0]}{capability[1]}"
        raise ArtifactError(
            f"module {self.name} has no code for {needed}: it holds {', '.join([*self.cubins, *self.ptx])}; "
            f"build it with --arch {needed}"
        )


def _own_version() -> str:
    import fftgen

    return fftgen.__version__


@dataclass(frozen=True)
class Artifact:
    """Modules and what made them: ``compiler`` as in "nvrtc 13.5.37", ``fftgen`` this package's version."""

    modules: tuple[Module, ...]
    compiler: str
    fftgen: str = field(default_factory=_own_version)

    def __post_init__(self) -> None:
        names = [m.name for m in self.modules]
        if not names or len(set(names)) != len(names):
            raise InternalError(f"an artifact needs modules of different names, got {names}")

    @property
    def digest(self) -> str:
        """The SHA-256 of the file that ``write`` makes of it: over all that it holds."""
        return _sha(dumps(self))

    def module(self, name: str) -> Module:
        """The module of that name. Raises InputError that lists the names there are."""
        for module in self.modules:
            if module.name == name:
                return module
        raise InputError(f"no module {name!r} in this artifact: {', '.join(m.name for m in self.modules)}")


def write(path: Path | str, artifact: Artifact) -> str:
    """Write an artifact whole or not at all and return the SHA-256 of the file (64 hexadecimal digits).

    Directories on the way are made. Raises ArtifactError; a file that was there is then untouched.
    """
    path = Path(path)
    raw = dumps(artifact)
    with writing(f"artifact {path}", ArtifactError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, raw)
    return _sha(raw)


def read(path: Path | str, sha256: str | None = None) -> Artifact:
    """Read an artifact and check every byte of it against the digests inside.

    ``sha256`` is the expected digest of the whole file, checked first. Raises UnreadableError, which is both
    of the following, for a file that cannot be read; ArtifactError for one that is foreign, damaged, of a
    newer schema or not the expected one; InputError for a malformed ``sha256``.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256={sha256!r} is not a SHA-256: give its 64 hexadecimal digits")
    try:
        with open_regular(Path(path)) as file:
            if sha256 is None:  # of a file of any size that is not ours no more than a header
                raw = file.read(8)
                size = int.from_bytes(raw, "little")
                header, _ = _split(
                    raw + (file.read(size) if size <= _LONGEST_HEADER else b""), os.fspath(path)
                )
                return _content(header, file.read(), os.fspath(path))
            raw = file.read()
    except OSError as error:
        raise UnreadableError(
            f"artifact {os.fspath(path)} cannot be read ({error.strerror or error}): "
            "check the path, or make the file with 'fftgen build'"
        ) from error
    if _sha(raw) != sha256.lower():
        raise ArtifactError(
            f"artifact {os.fspath(path)} has SHA-256 {_sha(raw)}, expected was {sha256.lower()}: "
            "it is not the file you trust; fetch it again"
        )
    return loads(raw, os.fspath(path))


def dumps(artifact: Artifact) -> bytes:
    """The file content of an artifact."""
    parts = {name: raw for module in artifact.modules for name, raw in _parts(module)}
    header: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT,
            "schema": str(SCHEMA),
            "fftgen": artifact.fftgen,
            "compiler": artifact.compiler,
            "modules": _json([_facts(module) for module in artifact.modules]),
            "parts": _json({name: _sha(raw) for name, raw in parts.items()}),
            "header_sha256": _BLANK,
        }
    }
    at = 0
    for name, raw in parts.items():
        header[name] = {"dtype": "U8", "shape": [len(raw)], "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = text.replace(_digest_field(_BLANK), _digest_field(_sha(text)))
    return len(text).to_bytes(8, "little") + text + b"".join(parts.values())


def loads(raw: bytes, origin: str = "the artifact") -> Artifact:
    """The artifact in a file's content; ``origin`` names it in messages. Raises ArtifactError."""
    return _content(*_split(raw, origin), origin)


def _content(header: dict[str, Any], data: bytes, origin: str) -> Artifact:
    """The artifact of a header that is proven, and of the data after it."""
    try:
        _check_layout(header, len(data), origin)
        meta = header.pop("__metadata__")
        digests = json.loads(meta["parts"])
        parts = {name: data[slice(*fact["data_offsets"])] for name, fact in header.items()}
        for name, part in parts.items():
            if _sha(part) != digests[name]:
                raise ArtifactError(f"{origin}: part {name} does not match its SHA-256: {_AGAIN}")
        modules = tuple(_module(facts, parts) for facts in json.loads(meta["modules"]))
        return Artifact(modules, meta["compiler"], meta["fftgen"])
    except SENSELESS as error:
        raise ArtifactError(f"{origin} has an index that makes no sense ({error!r}): {_AGAIN}") from error


#: What a header, or a plan, of unexpected form makes Python raise.
SENSELESS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    InternalError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_AGAIN = "the file is damaged; fetch it again or build it anew with 'fftgen build'"


def _split(raw: bytes, origin: str) -> tuple[dict[str, Any], bytes]:
    """The header, proven intact and of our schema, and the data after it."""
    size = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or size > len(raw) - 8:
        raise ArtifactError(f"{origin} is no fftgen artifact, or is cut off within its header: {_AGAIN}")
    text, data = raw[8 : 8 + size], raw[8 + size :]
    try:
        header = json.loads(text.decode())
        meta = header["__metadata__"]
        ours = meta["format"] == _FORMAT
        digest = _digest_field(meta["header_sha256"])
        whole = _digest_field(_sha(text.replace(digest, _digest_field(_BLANK)))) == digest
        schema = int(meta["schema"])
    except SENSELESS as error:
        raise ArtifactError(f"{origin} is no fftgen artifact, or its header is damaged: {_AGAIN}") from error
    if not ours or not whole:
        raise ArtifactError(f"{origin}: the header does not match its SHA-256: {_AGAIN}")
    if schema != SCHEMA:
        raise ArtifactError(
            f"{origin} has schema {schema}, made by fftgen {meta.get('fftgen')}; "
            f"this fftgen {_own_version()} reads schema {SCHEMA}: "
            + ("upgrade fftgen" if schema > SCHEMA else "build it anew with 'fftgen build'")
        )
    return header, data


def _check_layout(header: Mapping[str, Any], size: int, origin: str) -> None:
    """The parts must lie one after the other and fill the file to its end."""
    at, cut = 0, ""
    for name, fact in header.items():
        if name == "__metadata__":
            continue
        end = fact["data_offsets"][1]
        if end < at or fact != {"dtype": "U8", "shape": [end - at], "data_offsets": [at, end]}:
            raise ArtifactError(f"{origin}: part {name} lies where it cannot: {_AGAIN}")
        at = end
        cut = cut or (name if at > size else "")
    if at != size:
        where = f"is cut off within part {cut}" if cut else "has more bytes than its header tells of"
        raise ArtifactError(f"{origin} {where} ({size} bytes of data instead of {at}): {_AGAIN}")


def _digest_field(digest: str) -> bytes:
    # Unique in the header: quotes within its strings are escaped.
    return f'"header_sha256":"{digest}"'.encode()


def _parts(module: Module) -> Iterator[tuple[str, bytes]]:
    """Part names with their bytes, in the order of the file."""
    yield f"{module.name}/plan", module.plan
    yield f"{module.name}/source", module.source.text.encode()
    for name, text in module.source.headers.items():
        yield f"{module.name}/header/{name}", text.encode()
    for kind in ("cubin", "ptx", "table"):
        for name, raw in _by_kind(module, kind).items():
            yield f"{module.name}/{kind}/{name}", raw


def _by_kind(module: Module, kind: str) -> Mapping[str, bytes]:
    return {"cubin": module.cubins, "ptx": module.ptx, "table": module.tables}[kind]


def _facts(module: Module) -> dict[str, Any]:
    """What the header says about a module beside its parts."""
    return {
        "name": module.name,
        "plan_digest": module.plan_digest,
        "source": module.source.name,
        "entries": list(module.source.entries),
        "headers": list(module.source.headers),
        **{kind: list(_by_kind(module, kind)) for kind in ("cubin", "ptx", "table")},
        "resources": {
            target: {entry: asdict(r) for entry, r in found.items()}
            for target, found in module.resources.items()
        },
    }


def _module(facts: Mapping[str, Any], parts: Mapping[str, bytes]) -> Module:
    name = facts["name"]

    def named(kind: str) -> dict[str, bytes]:
        return {n: parts[f"{name}/{kind}/{n}"] for n in facts[kind]}

    headers = {n: parts[f"{name}/header/{n}"].decode() for n in facts["headers"]}
    return Module(
        name=name,
        plan=parts[f"{name}/plan"],
        plan_digest=facts["plan_digest"],
        source=Source(facts["source"], parts[f"{name}/source"].decode(), headers, tuple(facts["entries"])),
        cubins=named("cubin"),
        ptx=named("ptx"),
        tables=named("table"),
        resources={
            target: {entry: Resources(**r) for entry, r in found.items()}
            for target, found in facts["resources"].items()
        },
    )


def _runs(target: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``target`` runs on a chip.

    Machine code: same major version, same or higher minor. PTX: same or higher version. The suffix ``a``
    ties either to the very chip, ``f`` to its major version.
    """
    kind, major, minor, suffix = _parse(target)
    if suffix == "a" or (kind == "sm" and (capability in INTEGRATED or (major, minor) in INTEGRATED)):
        return (major, minor) == capability
    if kind == "sm" or suffix == "f":
        return major == capability[0] and minor <= capability[1]
    return (major, minor) <= capability


def _rank(target: str) -> tuple[int, int, int]:
    """Among targets that run the greatest is the best: nearest version, then the most specific."""
    _, major, minor, suffix = _parse(target)
    return major, minor, ("", "f", "a").index(suffix)


def _parse(target: str) -> tuple[str, int, int, str]:
    found = _TARGET.fullmatch(target)
    if found is None:
        raise InternalError(f"{target!r} is no target")
    return found[1], int(found[2]), int(found[3]), found[4]


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
