"""The artifact file: what goes in comes out, and no damage goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from fftgen import artifact as artifact_module
from fftgen import durable
from fftgen.artifact import SCHEMA, Artifact, Image, Module, dumps, loads, read, write
from fftgen.compile_log import Resources
from fftgen.errors import ArtifactError, InputError, InternalError
from fftgen.source import Source

SOURCE = Source("conv.cu", "// ü\n", {"fftgen/a.cuh": "int a;"}, ("conv",))
MODULE = Module(
    name="fftgen_conv_n8",
    plan=b'{"length": 8}',
    plan_digest="0" * 64,
    source=SOURCE,
    cubins={"sm_90": b"\x7fELF ninety", "sm_80": b"\x7fELF eighty"},
    ptx={"compute_80": b".version 8.0\n"},
    tables={"twiddle": bytes(range(32)), "empty": b""},
    resources={"sm_90": {"conv": Resources(40, 0, 0, 0, 1024)}, "sm_80": {}},
)
ARTIFACT = Artifact((MODULE, replace(MODULE, name="second", tables={})), "nvrtc 13.5.37", "0.1.0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "conv.fftgen"


def rewritten(raw: bytes, edit: Any) -> bytes:
    """A forged file: the header edited as JSON, with its digest made right again."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"]["header_sha256"] = "0" * 64
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    field = '"header_sha256":"{}"'
    right = field.format(hashlib.sha256(text).hexdigest()).encode()
    text = text.replace(field.format("0" * 64).encode(), right)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


# --- round trip


def test_what_is_written_is_read(path: Path) -> None:
    digest = write(path, ARTIFACT)
    assert read(path) == ARTIFACT
    assert read(str(path), sha256=digest.upper()) == ARTIFACT
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == read(path).digest
    again = read(path).module("fftgen_conv_n8")
    assert again.plan_digest == "0" * 64
    assert again.source.entries == ("conv",)
    assert again.resources["sm_90"]["conv"].registers == 40


def test_the_same_content_gives_the_same_bytes_in_any_order() -> None:
    turned = replace(
        MODULE,
        cubins=dict(reversed(MODULE.cubins.items())),
        tables=dict(reversed(MODULE.tables.items())),
        source=replace(SOURCE),
    )
    assert dumps(replace(ARTIFACT, modules=(turned, ARTIFACT.modules[1]))) == dumps(ARTIFACT)
    assert dumps(loads(dumps(ARTIFACT))) == dumps(ARTIFACT)


def test_every_field_reaches_the_file() -> None:
    changed: list[dict[str, Any]] = [
        {"name": "other"},
        {"plan": b"{}"},
        {"plan_digest": "1" * 64},
        {"source": replace(SOURCE, text="//")},
        {"source": replace(SOURCE, headers={})},
        {"source": replace(SOURCE, entries=("conv", "more"))},
        {"cubins": {"sm_90": b"other"}},
        {"ptx": {}},
        {"tables": {}},
        {"resources": {}},
    ]
    files = {dumps(replace(ARTIFACT, modules=(replace(MODULE, **c),))) for c in changed}
    files |= {dumps(ARTIFACT), dumps(replace(ARTIFACT, compiler="x")), dumps(replace(ARTIFACT, fftgen="9"))}
    assert len(files) == len(changed) + 3
    assert all(dumps(loads(f)) == f for f in files)


def test_any_safetensors_reader_opens_it(path: Path) -> None:
    write(path, ARTIFACT)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["compiler"] == "nvrtc 13.5.37"
        assert file.get_tensor("fftgen_conv_n8/cubin/sm_90").tobytes() == b"\x7fELF ninety"
        assert file.get_tensor("fftgen_conv_n8/table/empty").shape == (0,)
        assert {"second/plan", "second/source", "second/header/fftgen/a.cuh"} <= set(file.keys())


def test_the_version_of_the_package_is_recorded() -> None:
    import fftgen

    assert Artifact((MODULE,), "nvrtc").fftgen == fftgen.__version__


def test_an_unknown_module_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'third'.*fftgen_conv_n8, second"):
        ARTIFACT.module("third")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a/b"},
        {"name": ""},
        {"cubins": {"compute_80": b""}},
        {"cubins": {"sm_9x": b""}},
        {"ptx": {"sm_80": b""}},
        {"cubins": {}, "ptx": {}},
    ],
)
def test_a_module_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InternalError):
        replace(MODULE, **change)


def test_modules_need_names_of_their_own() -> None:
    for modules in ((), (MODULE, MODULE)):
        with pytest.raises(InternalError):
            Artifact(modules, "nvrtc")


def test_of_a_file_that_is_not_ours_no_more_than_a_header_is_read(tmp_path: Path) -> None:
    """It may be a model of any size, or have no end."""
    path = tmp_path / "model.safetensors"
    save_file({"weights": np.zeros(4)}, path)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ArtifactError, match="no fftgen artifact"):
        read(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * 8)
    with pytest.raises(ArtifactError, match="no fftgen artifact"):
        read(path)
    for endless in ("/dev/zero", tmp_path):
        with pytest.raises(ArtifactError, match=r"is no file|cannot be read"):
            read(endless)


# --- damage


def test_every_flipped_bit_is_noticed() -> None:
    raw = bytearray(dumps(replace(ARTIFACT, modules=(MODULE,))))
    for at in range(len(raw)):
        for bit in range(8):
            raw[at] ^= 1 << bit
            with pytest.raises(ArtifactError):
                loads(bytes(raw))
            raw[at] ^= 1 << bit
    assert loads(bytes(raw)).modules == (MODULE,)


def test_damage_in_a_part_names_the_part() -> None:
    raw = dumps(ARTIFACT)
    damaged = raw.replace(b"ELF ninety", b"ELF Ninety", 1)
    with pytest.raises(
        ArtifactError, match=r"file\.x: part fftgen_conv_n8/cubin/sm_90 .*SHA-256.*build it anew"
    ):
        loads(damaged, "file.x")
    with pytest.raises(ArtifactError, match=r"header does not match its SHA-256"):
        loads(raw.replace(b"13.5.37", b"13.5.38", 1))


def test_every_truncation_and_every_extension_is_noticed() -> None:
    raw = dumps(replace(ARTIFACT, modules=(MODULE,)))
    for length in range(len(raw)):
        with pytest.raises(ArtifactError):
            loads(raw[:length])
    for extra in (b"\0", b"more", raw):
        with pytest.raises(ArtifactError, match="more bytes"):
            loads(raw + extra)
    with pytest.raises(ArtifactError, match=r"cut off within part fftgen_conv_n8/table/twiddle"):
        loads(raw[:-1])
    with pytest.raises(ArtifactError, match=r"cut off within its header"):
        loads(raw[:100])


def test_a_newer_schema_is_told_as_such(path: Path) -> None:
    def newer(header: dict[str, Any]) -> None:
        header["__metadata__"].update(schema=str(SCHEMA + 1), fftgen="7.0.0", modules="of another form")

    path.write_bytes(rewritten(dumps(ARTIFACT), newer))
    with pytest.raises(ArtifactError, match=rf"schema {SCHEMA + 1}, made by fftgen 7\.0\.0.*upgrade fftgen"):
        read(path)

    def older(header: dict[str, Any]) -> None:
        header["__metadata__"]["schema"] = "0"

    with pytest.raises(ArtifactError, match="build it anew"):
        loads(rewritten(dumps(ARTIFACT), older))


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h["__metadata__"].update(modules="[{}]"),
        lambda h: h["__metadata__"].update(modules="[]"),
        lambda h: h["__metadata__"].update(modules="[" * 100_000),
        lambda h: h["__metadata__"].update(parts="{}"),
        lambda h: h["__metadata__"].update(schema="one"),
        lambda h: h["__metadata__"].update(format="other"),
        lambda h: h["__metadata__"].pop("compiler"),
        lambda h: h.update(more={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}),
        lambda h: h.update(more=7),
        lambda h: h["second/plan"].update(dtype="F32"),
        lambda h: h["second/plan"].update(data_offsets=["0", "1"]),
        lambda h: h["second/plan"].update(data_offsets=[]),
        lambda h: h.pop("second/plan"),
    ],
)
def test_a_forged_header_with_a_right_digest_is_an_error_and_no_crash(edit: Any) -> None:
    assert loads(rewritten(dumps(ARTIFACT), lambda h: None)) == ARTIFACT
    with pytest.raises(ArtifactError):
        loads(rewritten(dumps(ARTIFACT), edit))


def test_another_file_than_the_expected_is_refused(path: Path) -> None:
    digest = write(path, ARTIFACT)
    write(path, replace(ARTIFACT, compiler="another"))
    with pytest.raises(ArtifactError, match=rf"expected was {digest}"):
        read(path, sha256=digest)
    for malformed in ("", "abc", "g" * 64, digest + "0"):
        with pytest.raises(InputError, match="64 hexadecimal digits"):
            read(path, sha256=malformed)


_HUGE = b'{"__metadata__": {"format": "fftgen", "header_sha256": "%b", "schema": 1e999}}' % (b"0" * 64)
HUGE_SCHEMA = len(_HUGE).to_bytes(8, "little") + _HUGE  # JSON's way to say infinity, which no integer is


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF\x02\x01\x01" + bytes(100),
        b"PK\x03\x04 a zip archive, for example a PyTorch checkpoint",
        b"\x02" + bytes(7) + b"{}",
        HUGE_SCHEMA,
        b"\x02" + bytes(7) + b"[]",
        b"\x04" + bytes(7) + b"null",
        b"\x10" + bytes(7) + b'{"a": "\xff\xff\xff"  }',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
)
def test_a_foreign_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is no fftgen artifact"):
        read(path)


def test_the_weights_of_a_model_are_no_artifact(path: Path) -> None:
    save_file({"weight": np.ones(4, np.float32)}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"conv\.fftgen is no fftgen artifact"):
        read(path)


def test_missing_directory_and_unreadable_files_are_told_with_their_path(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match=r"conv\.fftgen cannot be read .*fftgen build"):
        read(path)
    with pytest.raises(ArtifactError, match=r"Is a directory"):
        read(path.parent)

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    write(path, ARTIFACT)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ArtifactError, match=r"Permission denied"):
        read(path)


# --- writing


def test_a_failed_write_leaves_the_file_that_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, ARTIFACT)
    before = path.read_bytes()

    for step in ("fsync", "replace"):

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(durable.os, step, full)
            with pytest.raises(ArtifactError, match=r"cannot be written \(No space left on device\)"):
                write(path, replace(ARTIFACT, compiler="another"))
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


def test_writing_makes_directories_and_keeps_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out" / "deep" / "conv.fftgen"
    write(path, ARTIFACT)
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o600)
    write(path, ARTIFACT)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="name a directory that exists"):
        write(tmp_path / "file" / "conv.fftgen", ARTIFACT)


def test_writing_over_a_directory_fails_cleanly(tmp_path: Path) -> None:
    (tmp_path / "conv.fftgen").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        write(tmp_path / "conv.fftgen", ARTIFACT)
    assert os.listdir(tmp_path) == ["conv.fftgen"]


# --- choosing code


def holding(*targets: str) -> Module:
    return replace(
        MODULE,
        cubins={t: t.encode() for t in targets if t.startswith("sm_")},
        ptx={t: t.encode() for t in targets if t.startswith("compute_")},
        resources={},
    )


@pytest.mark.parametrize(
    ("targets", "capability", "expected"),
    [
        (("sm_80", "sm_90"), (9, 0), "sm_90"),
        (("sm_80", "sm_86"), (8, 9), "sm_86"),
        (("sm_80", "sm_89"), (8, 6), "sm_80"),
        (("sm_90", "sm_90a"), (9, 0), "sm_90a"),
        (("sm_100", "sm_100f", "sm_100a"), (10, 0), "sm_100a"),
        (("sm_100", "sm_100f", "sm_100a"), (10, 3), "sm_100f"),
        (("sm_100f", "sm_103"), (10, 3), "sm_103"),
        (("sm_120",), (12, 1), "sm_120"),
        (("sm_80", "compute_80"), (9, 0), "compute_80"),
        (("sm_90", "compute_80", "compute_90"), (10, 0), "compute_90"),
        (("sm_90", "compute_80", "compute_90"), (8, 6), "compute_80"),
        (("compute_80", "compute_90a"), (9, 0), "compute_90a"),
        (("compute_80", "compute_90a"), (10, 0), "compute_80"),
        (("sm_86", "compute_80"), (8, 7), "compute_80"),
        (("sm_87", "compute_80"), (8, 9), "compute_80"),
        (("sm_87", "sm_80"), (8, 7), "sm_87"),
    ],
)
def test_the_best_code_for_a_chip_is_chosen(
    targets: tuple[str, ...], capability: tuple[int, int], expected: str
) -> None:
    kind = "cubin" if expected.startswith("sm_") else "ptx"
    assert holding(*targets).image_for(capability) == Image(kind, expected, expected.encode())


@pytest.mark.parametrize(
    ("targets", "capability"),
    [
        (("sm_90",), (8, 0)),
        (("sm_90",), (10, 0)),
        (("sm_86",), (8, 0)),
        (("sm_90a", "sm_80"), (10, 0)),
        (("sm_100a",), (10, 3)),
        (("sm_100f",), (12, 0)),
        (("compute_90",), (8, 9)),
    ],
)
def test_other_targets_only_is_an_error_that_names_both(
    targets: tuple[str, ...], capability: tuple[int, int]
) -> None:
    needed = f"sm_{capability[0]}{capability[1]}"
    there = ", ".join(sorted(targets))
    with pytest.raises(ArtifactError, match=rf"no code for {needed}: it holds {there}; .*--arch {needed}"):
        holding(*targets).image_for(capability)


def test_the_blank_digest_stands_once_in_the_header() -> None:
    # MODULE.plan_digest is 64 zeros, too: the header's digest must not be put in its place.
    raw = dumps(ARTIFACT)
    assert raw.count(artifact_module._digest_field(loads_digest(raw))) == 1
    assert loads(raw).modules[0].plan_digest == "0" * 64


def loads_digest(raw: bytes) -> str:
    size = int.from_bytes(raw[:8], "little")
    return str(json.loads(raw[8 : 8 + size])["__metadata__"]["header_sha256"])
