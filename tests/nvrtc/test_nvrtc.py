"""The compiler room: what comes out, that it is reproducible, and how failures are told."""

from __future__ import annotations

import ctypes
import locale
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fftgen import nvrtc, sass, toolkit
from fftgen.cache import Cache, Entry, Key
from fftgen.compile_log import parse_resources
from fftgen.errors import CompileError, InputError, ToolchainError
from fftgen.nvrtc import Resources, Source


def why_not() -> str:
    """Why nothing can be compiled here, or "" when it can."""
    try:
        nvrtc.headers()
    except ToolchainError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

LIBC: Any = ctypes.CDLL(None) if sys.platform != "win32" else None

HEADER = "__device__ __forceinline__ float twice(float x) { return x * 2.0f; }\n"
TEXT = r"""
#include <mma.h>
#include <cuda_bf16.h>
#include "fftgen/twice.cuh"
using namespace nvcuda;
extern "C" __global__ void product(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) {
  __shared__ float stage[256];
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
  wmma::fill_fragment(fc, 0.0f);
  wmma::load_matrix_sync(fa, a, 16);
  wmma::load_matrix_sync(fb, b, 16);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(stage, fc, 16, wmma::mem_row_major);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += 32) c[i] = twice(stage[255 - i]);
}
extern "C" __global__ void copy(float* to, const float* from) { to[threadIdx.x] = from[threadIdx.x]; }
"""
SOURCE = Source("product.cu", TEXT, {"fftgen/twice.cuh": HEADER}, ("product", "copy"))


def edited(old: str, new: str, header: bool = False) -> Source:
    text, side = (TEXT, HEADER.replace(old, new)) if header else (TEXT.replace(old, new), HEADER)
    assert text != TEXT or side != HEADER
    return Source("product.cu", text, {"fftgen/twice.cuh": side}, SOURCE.entries)


@pytest.fixture(scope="module")
def cubin() -> nvrtc.Cubin:
    return nvrtc.compile_cubin(SOURCE, "sm_90")


def sections(elf: bytes) -> dict[str, bytes]:
    """Contents of the sections of a 64-bit ELF file (System V ABI, chapter 4)."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size) for i in range(count)]
    names = elf[rows[names_at][4] :][: rows[names_at][5]]
    nobits = 8
    return {
        names[r[0] : names.index(b"\0", r[0])].decode(): elf[r[4] : r[4] + r[5]]
        for r in rows
        if r[1] != nobits
    }


def without_line_info(ptx: str) -> list[str]:
    kept = re.sub(r"\.section\s+\.debug_str\s*\{.*?\}", "", ptx, flags=re.S)
    lines = (line for line in kept.splitlines() if not re.match(r"\s*\.(loc|file)\s", line))
    return [line for line in lines if line.strip()]


def test_importing_fftgen_and_its_compiler_touches_no_cuda_package() -> None:
    # cuda-bindings 12.9 brings a .pth file that imports parts of itself into every process.
    code = (
        "import sys; before = set(sys.modules); import fftgen, fftgen.nvrtc\n"
        "assert not [m for m in set(sys.modules) - before if m.split('.')[0] == 'cuda']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_cubin_is_machine_code_for_its_architecture_with_both_kernels(cubin: nvrtc.Cubin) -> None:
    assert cubin.image[:4] == b"\x7fELF"
    assert {".text.product", ".text.copy"} <= set(sections(cubin.image))
    assert ".target sm_90" in cubin.ptx
    assert cubin.arch == "sm_90"


def test_resources_are_reported_per_kernel(cubin: nvrtc.Cubin) -> None:
    assert set(cubin.resources) == {"product", "copy"}
    assert cubin.resources["product"].static_shared_bytes == 256 * 4
    assert cubin.resources["copy"].static_shared_bytes == 0
    assert 16 <= cubin.resources["product"].registers <= 255
    assert not cubin.resources["product"].spills


def test_spills_are_seen_also_in_a_function_that_was_not_inlined() -> None:
    body = "float s[80];\n#pragma unroll\nfor (int i = 0; i < 80; i++) s[i] = p[i * 33];\n__syncthreads();\n"
    body += "#pragma unroll\nfor (int i = 0; i < 80; i++) p[i * 31] = s[79 - i] * s[(i * 7) % 80];\n"
    bounds = 'extern "C" __global__ void __launch_bounds__(1024, 2)'
    plain = Source("spill.cu", f"{bounds} tight(float* p) {{ {body} }}", entries=("tight",))
    found = nvrtc.compile_cubin(plain).resources["tight"]
    assert found.registers == 32
    assert found.spills
    assert found.spill_store_bytes > 0 < found.stack_bytes
    called = (
        f"__noinline__ __device__ void work(float* p) {{ {body} }} {bounds} tight(float* p) {{ work(p); }}"
    )
    assert nvrtc.compile_cubin(Source("spill.cu", called, entries=("tight",))).resources["tight"].spills


def test_a_log_with_outlined_functions_counts_their_spills_to_every_kernel() -> None:
    log = """ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 376 bytes smem, 376 bytes cmem[0]
ptxas info    : Function properties for _Z4slowPfi
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads"""
    assert parse_resources(log) == {"b": Resources(10, 4, 12, 8, 376)}
    assert parse_resources("nothing") == {}


def test_the_same_source_gives_the_same_bytes_in_any_directory(
    cubin: nvrtc.Cubin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = nvrtc.compile_ptx(SOURCE)
    monkeypatch.chdir(tmp_path)
    again = nvrtc.compile_cubin(SOURCE, "sm_90")
    assert again.image == cubin.image
    assert again.ptx == cubin.ptx
    assert nvrtc.compile_ptx(SOURCE) == ptx


def test_ptx_names_files_without_directories() -> None:
    ptx = nvrtc.compile_ptx(SOURCE)
    files = re.findall(r'\.file\s+\d+\s+"([^"]*)"', ptx)
    assert {"product.cu", "fftgen/twice.cuh"} <= set(files)
    assert all(not f.startswith("/") for f in files)
    line = TEXT.splitlines().index("  wmma::mma_sync(fc, fa, fb, fc);") + 1
    number = re.search(r'\.file\s+(\d+)\s+"product.cu"', ptx)
    assert number
    assert re.search(rf"\.loc\s+{number[1]} {line} ", ptx)


def test_line_information_changes_no_instruction(cubin: nvrtc.Cubin) -> None:
    lined = nvrtc.compile_cubin(SOURCE, "sm_90", line_info=True)
    bare, with_lines = sections(cubin.image), sections(lined.image)
    assert ".debug_line" in with_lines
    assert ".debug_line" not in bare
    for kernel in SOURCE.entries:
        assert bare[f".text.{kernel}"] == with_lines[f".text.{kernel}"]
    assert without_line_info(lined.ptx) == without_line_info(cubin.ptx)
    assert ".loc" in lined.ptx
    assert ".loc" not in cubin.ptx


def test_the_ptx_of_a_cubin_is_that_of_the_virtual_architecture(cubin: nvrtc.Cubin) -> None:
    virtual = nvrtc.compile_ptx(SOURCE, "compute_90", line_info=False)
    assert virtual == cubin.ptx
    lined = nvrtc.compile_ptx(SOURCE, "compute_90")
    assert without_line_info(lined) == without_line_info(cubin.ptx)


def test_many_architectures_in_threads_equal_one_after_the_other(cubin: nvrtc.Cubin) -> None:
    archs = ["sm_80", "sm_90", "sm_89", "sm_90"]
    jobs = nvrtc.compile_jobs([(SOURCE, a) for a in archs], workers=3)
    assert [c.arch for c in jobs] == archs
    assert jobs[1].image == jobs[3].image == cubin.image
    assert jobs[0].image == nvrtc.compile_cubin(SOURCE, "sm_80").image
    assert list(nvrtc.compile_many(SOURCE, ["sm_86", "sm_80"])) == ["sm_86", "sm_80"]


def test_an_error_in_one_of_many_is_raised_and_progress_told_before() -> None:
    seen: list[str] = []
    jobs = [(SOURCE, "sm_80"), (edited("twice(stage", "thrice(stage"), "sm_80")]
    with pytest.raises(CompileError, match="thrice"):
        nvrtc.compile_jobs(jobs, workers=2, done=lambda c: seen.append(c.arch))
    assert seen == ["sm_80"]


@pytest.mark.parametrize("arch", ["sm_99", "sm_13", "compute_90", "sm_90b", "90", "", "sm_80a", "sm_90f"])
def test_an_unknown_architecture_is_refused_with_the_known_ones(arch: str) -> None:
    with pytest.raises(InputError, match=r"sm_80.*sm_90"):
        nvrtc.compile_cubin(SOURCE, arch)


def test_the_architecture_specific_target_is_accepted() -> None:
    assert ".target sm_90a" in nvrtc.compile_cubin(SOURCE, "sm_90a").ptx


def test_an_error_in_the_source_is_shown_beside_its_line() -> None:
    with pytest.raises(CompileError) as caught:
        nvrtc.compile_cubin(edited("twice(stage", "thrice(stage"))
    message = str(caught.value)
    number = next(i for i, line in enumerate(TEXT.splitlines(), 1) if "twice(stage" in line)
    assert f"product.cu:{number}: error" in message
    shown = message.splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith(f"> {number} | "))
    assert shown[at - 1] == f"  {number - 1} |   __syncthreads();"
    assert shown[at + 1].index("^") == shown[at].index("thrice")
    assert 'identifier "thrice" is undefined' in caught.value.log


def test_an_error_in_a_header_is_shown_beside_its_line() -> None:
    with pytest.raises(CompileError, match=r"fftgen/twice.cuh:1: error(.|\n)*> 1 \| __device__"):
        nvrtc.compile_ptx(edited("x * 2", "y * 2", header=True))


def test_a_caret_stands_right_under_a_line_with_tabs() -> None:
    source = Source(
        "tabs.cu", 'extern "C" __global__ void k(float* p) {\n\tint x = 3;\t\tp[0] = lost(x);\n}\n'
    )
    with pytest.raises(CompileError) as caught:
        nvrtc.compile_ptx(source)
    shown = str(caught.value).splitlines()
    at = next(i for i, line in enumerate(shown) if line.startswith("> 2 | "))
    assert shown[at + 1].expandtabs(8).index("^") == shown[at].expandtabs(8).index("lost")


def test_an_error_in_inline_ptx_is_shown_beside_the_ptx_line() -> None:
    with pytest.raises(CompileError, match=r"PTX line \d+: error(.|\n)*> \d+ \| \s*bogus\.sync;"):
        nvrtc.compile_cubin(edited("__syncthreads();", 'asm volatile("bogus.sync;");'))


def test_too_much_static_shared_memory_is_a_compile_error_with_the_limit() -> None:
    with pytest.raises(CompileError, match=r"shared data"):
        nvrtc.compile_cubin(edited("stage[256]", "stage[25600]"))


def test_a_kernel_that_did_not_come_out_is_an_error() -> None:
    source = Source("product.cu", TEXT, SOURCE.headers, ("product", "lost"))
    for compile_it in (nvrtc.compile_cubin, nvrtc.compile_ptx):
        with pytest.raises(CompileError, match=r'kernel lost is not in it \(found: .*product.*extern "C"'):
            compile_it(source)


def test_warnings_are_in_the_log() -> None:
    noisy = edited("return x", "int unused = 3; return x", header=True)
    assert 'fftgen/twice.cuh(1): warning #177-D: variable "unused"' in nvrtc.compile_cubin(noisy).log


def test_options_are_ordered_and_hold_no_path() -> None:
    assert nvrtc.options("sm_90", extra=["-DX=1"]) == (
        "--gpu-architecture=sm_90",
        "-std=c++17",
        "-default-device",
        "--ptxas-options=-v",
        "-DX=1",
    )
    assert "--generate-line-info" in nvrtc.options("compute_80", line_info=True)
    assert nvrtc.compile_ptx(edited("x * 2.0f", "x * FACTOR", header=True), extra=["-DFACTOR=3.0f"])
    with pytest.raises(CompileError, match="--no-such-option"):
        nvrtc.compile_cubin(SOURCE, extra=["--no-such-option"])


def test_the_compiler_names_its_release() -> None:
    assert nvrtc.build().startswith(".".join(map(str, nvrtc.version())))
    assert re.fullmatch(r"\d+\.\d+\.\d+", nvrtc.build())


def test_dumping_leaves_every_file_of_a_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFTGEN_DUMP", str(tmp_path / "dump"))
    cubin = nvrtc.compile_cubin(SOURCE, "sm_80")
    assert (tmp_path / "dump/product.cu").read_text() == TEXT
    assert (tmp_path / "dump/fftgen/twice.cuh").read_text() == HEADER
    assert (tmp_path / "dump/product.sm_80.cubin").read_bytes() == cubin.image
    assert "ptxas info" in (tmp_path / "dump/product.sm_80.log").read_text()
    with pytest.raises(CompileError):
        nvrtc.compile_cubin(edited("twice(stage", "thrice(stage"), "sm_80")
    assert "thrice" in (tmp_path / "dump/product.sm_80.log").read_text()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FFTGEN_DUMP", str(tmp_path / "file"))
    with pytest.raises(InputError, match="FFTGEN_DUMP"):
        nvrtc.compile_cubin(SOURCE, "sm_80")


def fake_toolkit(root: Path, release: int, names: tuple[str, ...]) -> Path:
    for name in (*names, "cuda_runtime_api.h"):
        path = root / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#define CUDART_VERSION {release}\n")
    return root


def test_headers_come_from_the_first_complete_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "_wheel_roots", list)
    monkeypatch.setattr(toolkit, "_SYSTEM", tmp_path / "nothing")
    partial = fake_toolkit(tmp_path / "partial", 13000, ("cuda_fp16.h", "cuda_bf16.h", "mma.h"))
    older = fake_toolkit(tmp_path / "older", 12090, toolkit.PROBES)
    whole = fake_toolkit(tmp_path / "whole", 13020, toolkit.PROBES)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(partial))
    monkeypatch.setenv("CUDA_PATH", str(older))
    found = toolkit.find_headers(13)
    assert found
    assert found.missing == ("crt/mma.h",)
    assert found.origin == f"CUDA_HOME={partial}"
    monkeypatch.setenv("CUDA_PATH", str(whole))
    found = toolkit.find_headers(13)
    assert found
    assert found.version == (13, 2)
    assert found.missing == ()
    twelve = toolkit.find_headers(12)
    assert twelve is None
    before = found.digest()
    (whole / "include/crt/mma.h").write_text("changed")
    assert found.digest() != before


def test_wheels_of_cuda_12_lie_in_a_directory_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "_wheel_roots", lambda: [tmp_path])
    fake_toolkit(tmp_path / "cuda_runtime", 12090, ("cuda_fp16.h", "cuda_bf16.h", "mma.h"))
    fake_toolkit(tmp_path / "cuda_nvcc", 12090, ("crt/mma.h",))
    found = toolkit.find_headers(12)
    assert found
    assert found.missing == ()
    assert len(found.directories) == 2


@pytest.fixture
def no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without wheels or toolkit, with an empty cache."""
    monkeypatch.setattr(toolkit, "_wheel_roots", list)
    monkeypatch.setattr(toolkit, "_SYSTEM", tmp_path / "nothing")
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FFTGEN_CACHE_DIR", str(tmp_path / "cache"))
    nvrtc._headers.cache_clear()
    yield tmp_path
    nvrtc._headers.cache_clear()


def test_without_headers_those_inside_nvrtc_serve(no_headers: Path, cubin: nvrtc.Cubin) -> None:
    if nvrtc.version() < (13, 3):
        pytest.skip("this NVRTC carries no headers")
    assert nvrtc.headers().directories[0].parent == no_headers / "cache"
    assert nvrtc.compile_cubin(SOURCE, "sm_90").image == cubin.image


def test_without_any_headers_the_way_out_is_named(no_headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_BUNDLES_HEADERS", (99, 0))
    with pytest.raises(ToolchainError, match=r"pip install 'fftgen\[cu1[23]\]'.*CUDA_HOME"):
        nvrtc.compile_ptx(SOURCE)


def test_headers_without_crt_compile_what_does_not_need_it_and_name_the_package(
    no_headers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    real = nvrtc.headers()
    partial = toolkit.Headers("a partial set", (no_headers / "include",), real.version, ("crt/mma.h",))
    for name in ("cuda_fp16.h", "cuda_fp16.hpp", "cuda_bf16.h", "cuda_bf16.hpp", "mma.h"):
        text = real.find(name)
        assert text
        (no_headers / "include").mkdir(exist_ok=True)
        (no_headers / "include" / name).write_bytes(text.read_bytes())
    monkeypatch.setattr(nvrtc, "headers", lambda: partial)
    with pytest.raises(
        ToolchainError, match=r"crt/mma.h.*a partial set.*pip install 'nvidia-cuda-[-\w]+==\d+\.\d+\.\*'"
    ):
        nvrtc.compile_cubin(SOURCE)
    assert nvrtc.compile_ptx(Source("plain.cu", 'extern "C" __global__ void k(float* p) { *p = 1; }'))


@pytest.mark.skipif(not hasattr(LIBC, "uselocale"), reason="this system's threads have no locales")
def test_a_compile_leaves_its_thread_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC 12.4 takes another one for itself and keeps it; this one is made to."""
    use = LIBC.uselocale
    use.argtypes, use.restype = [ctypes.c_void_p], ctypes.c_void_p
    LIBC.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    LIBC.newlocale.restype = ctypes.c_void_p
    plain = LIBC.newlocale(1 << locale.LC_CTYPE, b"C", None)
    bindings, before = nvrtc._bindings(), use(None)

    class Changing:
        def __getattr__(self, name: str) -> Any:
            return getattr(bindings, name)

        def nvrtcCompileProgram(self, *arguments: Any) -> Any:  # noqa: N802
            use(plain)
            return bindings.nvrtcCompileProgram(*arguments)

    monkeypatch.setattr(nvrtc, "_bindings", Changing)
    assert plain != before
    assert nvrtc.compile_ptx(Source("plain.cu", 'extern "C" __global__ void k() {}'))
    assert use(None) == before


def test_without_the_bindings_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['cuda.bindings'] = None\n"
        "from fftgen import nvrtc, errors\n"
        "try: nvrtc.version()\n"
        "except errors.ToolchainError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'fftgen[cu13]'" in done.stdout


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        @staticmethod
        def nvrtcVersion() -> None:  # noqa: N802
            raise RuntimeError("Failed to dlopen libnvrtc.so.13\nlong story")

    monkeypatch.setattr(nvrtc, "_bindings", Missing)
    with pytest.raises(
        ToolchainError, match=r"\(Failed to dlopen libnvrtc.so.13\): pip install 'fftgen\[cu1"
    ):
        nvrtc.version()


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="no nvdisasm")
def test_the_disassembly_counts_instructions_by_kernel_and_opcode(cubin: nvrtc.Cubin) -> None:
    listing = sass.disassemble(cubin.image)
    mix = sass.instruction_mix(listing)
    assert set(mix) == {"product", "copy"}
    assert mix["product"]["HMMA"] == 2  # 16x16x16 is two of m16n8k16
    assert mix["product"]["BAR"] == 1
    assert mix["copy"]["STG"] == 1
    assert "HMMA" not in mix["copy"]
    whole = sass.instruction_mix(listing, modifiers=True)["product"]
    assert whole["HMMA.16816.F32.BF16"] == 2
    # 128-bit instructions from sm_70 on: the count must account for every byte of the section.
    assert sum(whole.values()) == len(sections(cubin.image)[".text.product"]) // 16


def test_predicates_are_not_opcodes() -> None:
    listing = """//--------------------- .text.k     --------------------------
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/              @UP1 UMOV UR4, 0x400 ;
        /*0030*/                   LDL.64 R2, [R1+0x8] ;
.L_x_1:
//--------------------- .nv.info     --------------------------
        /*0000*/ 	.byte	0x04, 0x2f
"""
    assert sass.instruction_mix(listing) == {"k": {"BRA": 1, "UMOV": 1, "LDL": 1}}


@pytest.mark.skipif(toolkit.find_tool("nvdisasm") is None, reason="no nvdisasm")
def test_bytes_that_are_no_cubin_cannot_be_disassembled() -> None:
    with pytest.raises(InputError, match="cannot read these 8 bytes"):
        sass.disassemble(b"no cubin")


def test_without_nvdisasm_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "find_tool", lambda name: None)
    with pytest.raises(ToolchainError, match="pip install nvidia-cuda-nvdisasm"):
        sass.disassemble(b"")


def test_a_compiled_kernel_is_found_again_by_all_that_made_it(cubin: nvrtc.Cubin, tmp_path: Path) -> None:
    store = Cache(tmp_path)
    key = Key.of(SOURCE, "sm_90")
    assert store.get_or_build(key, lambda: Entry.of(SOURCE, cubin)) == Entry.of(SOURCE, cubin)
    found = store.get(Key.of(SOURCE, "sm_90"))
    assert found
    assert found.cubin == cubin.image
    assert found.resources == cubin.resources
    assert found.source == SOURCE
    others = [
        Key.of(SOURCE, "sm_80"),
        Key.of(SOURCE, "sm_90a"),
        Key.of(SOURCE, "sm_90", extra=["-DX"]),
        Key.of(edited("x * 2", "x * 3", header=True), "sm_90"),
    ]
    assert all(store.get(other) is None for other in others)
    assert nvrtc.build() in key.compiler
