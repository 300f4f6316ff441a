"""Loads machine code and launches it on a stream: the only caller of the CUDA driver.

Everything runs in the device's primary context, the one PyTorch uses, so addresses and streams are
shared. No function here synchronises, allocates device memory or changes the current context for good.
"""

from __future__ import annotations

from array import array
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from fftgen.errors import ToolchainError

_WAYS_OUT = {
    222: "the image was made by a newer NVRTC than this driver knows: update the driver, or build with the "
    "NVRTC of the driver's CUDA version",
    209: "the image has no code for this GPU: build it with `fftgen build --arch` for this architecture",
    218: "the driver cannot compile this PTX: update the driver, or build a cubin for this architecture",
    701: "too many registers or threads for one block on this GPU: rebuild for this architecture",
    2: "out of device memory",
}
STATIC_SHARED_LIMIT = 48 * 1024  # above this, dynamic shared memory has to be asked for


@lru_cache(maxsize=1)
def driver() -> Any:
    """``cuda.bindings.driver``, initialised. Raises ToolchainError without cuda-bindings, driver or GPU."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        raise ToolchainError(
            "cuda-bindings is not installed: pip install 'cuda-bindings>=12.9' (CPU tensors need none of it)"
        ) from error
    try:
        (code,) = bindings.cuInit(0)
    except RuntimeError as error:  # libcuda.so is not there
        raise ToolchainError(
            "no NVIDIA driver on this machine: install one, or use CPU tensors or `fftgen verify`"
        ) from error
    if code != bindings.CUresult.CUDA_SUCCESS:
        raise ToolchainError(
            f"the NVIDIA driver does not start ({code.name}): is a GPU present and visible to this process?"
        )
    return bindings


def _check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a driver call. Raises ToolchainError with the code's name and the way out."""
    code = result[0]
    if int(code) != 0:
        hint = _WAYS_OUT.get(int(code), "see the CUDA driver API, CUresult")
        raise ToolchainError(f"{what} failed with {code.name} ({int(code)}): {hint}")
    return result[1] if len(result) > 1 else None


class Module:
    """Machine code (cubin) or PTX loaded on one device, and its kernels."""

    def __init__(self, image: bytes, device: int, entries: dict[str, int]) -> None:
        """``entries`` maps kernel names to the dynamic shared memory (bytes) they will be launched with."""
        cuda = driver()
        self.device = device
        handle = _check(cuda.cuDeviceGet(device), f"finding GPU {device}")
        self._context = _check(cuda.cuDevicePrimaryCtxRetain(handle), f"opening GPU {device}")
        self._launchers: dict[int, StreamLauncher] = {}
        with _Current(self._context):
            self._module = _check(cuda.cuModuleLoadData(image), "loading a kernel")
            self._functions = {name: self._function(name, shared) for name, shared in entries.items()}

    def _function(self, name: str, shared_bytes: int) -> Any:
        cuda = driver()
        function = _check(cuda.cuModuleGetFunction(self._module, name.encode()), f"finding kernel {name}")
        if shared_bytes > STATIC_SHARED_LIMIT:
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(
                cuda.cuFuncSetAttribute(function, attribute, shared_bytes),
                f"asking for {shared_bytes} bytes of shared memory for {name}",
            )
        return function

    def on(self, stream: int) -> StreamLauncher:
        """A launcher of this module's kernels on a stream (its handle as an int; 0: the default stream)."""
        found = self._launchers.get(stream)
        if found is None:
            if len(self._launchers) >= 64:  # streams that come and go must not pile up
                self._launchers.clear()
            found = StreamLauncher(stream, self._context, self._functions)
            self._launchers[stream] = found
        return found


class StreamLauncher:
    """A ``Launcher`` (launch.py) that puts kernels of one module on one stream."""

    def __init__(self, stream: int, context: Any, functions: dict[str, Any]) -> None:
        self._driver = driver()
        self._stream = self._driver.CUstream(stream)
        self._context = context
        self._handle = int(context)
        self._functions = functions

    def launch(
        self, entry: str, grid: int, block: int, shared_bytes: int, params: bytes, cluster: int = 1
    ) -> None:
        """Launch one kernel. Asynchronous: errors inside the kernel surface at the next synchronisation."""
        cuda = self._driver
        # The kernel's only parameter; the driver copies it before it returns.
        argument = array("B", params)
        pointers = array("Q", (argument.buffer_info()[0],))
        # PyTorch has made this context current as a rule: asking costs less than pushing and popping.
        code, current = cuda.cuCtxGetCurrent()
        if code:
            _check((code,), "asking for the current context")
        with _AS_IT_IS if int(current) == self._handle else _Current(self._context):
            if cluster == 1:
                result = cuda.cuLaunchKernel(
                    self._functions[entry],
                    grid, 1, 1,
                    block, 1, 1,
                    shared_bytes,
                    self._stream,
                    pointers.buffer_info()[0],
                    0,
                )  # fmt: skip
            else:
                config = _clustered(grid, block, shared_bytes, self._stream, cluster)
                result = cuda.cuLaunchKernelEx(config, self._functions[entry], pointers.buffer_info()[0], 0)
        if result[0]:
            what = f"launching {entry} on {grid} blocks of {block} threads with {shared_bytes} bytes"
            _check(result, what if cluster == 1 else f"{what}, clusters of {cluster}")


@lru_cache(maxsize=256)
def _clustered(grid: int, block: int, shared_bytes: int, stream: Any, cluster: int) -> Any:
    """The configuration of a launch whose blocks form clusters (CUDA driver API, cuLaunchKernelEx)."""
    cuda = driver()
    size = cuda.CUlaunchAttribute()
    size.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = cluster, 1, 1
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes, config.hStream = shared_bytes, stream
    config.attrs, config.numAttrs = [size], 1
    return config


_AS_IT_IS = nullcontext()


class _Current:
    """Makes a context current for a while. The driver's stack keeps whatever was current before."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        _check(driver().cuCtxPushCurrent(self._context), "making a context current")

    def __exit__(self, *_: object) -> None:
        _check(driver().cuCtxPopCurrent(), "restoring the context")
