"""Loads machine code and launches it on a stream: the only caller of the CUDA driver.

Everything runs in the device's primary context, the one PyTorch uses, so addresses and streams are
shared. No function here synchronises, allocates device memory or changes the current context for good.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from fftgen.errors import DriverError, ToolchainError

OUT_OF_MEMORY = 2
_EARLIER = (
    "a kernel that was launched before, by whatever library, has failed, and this process can use the GPU no "
    "more: CUDA_LAUNCH_BLOCKING=1 or compute-sanitizer says which"
)
_TOO_NEW = (
    "the image was made by a newer NVRTC than this driver knows: update the driver, or build with the "
    "NVRTC of the driver's CUDA version"
)
# CUDA driver API, CUresult.
_WAYS_OUT = {
    200: _TOO_NEW,
    222: _TOO_NEW,
    209: "the image has no code for this GPU: build it with `fftgen build --arch` for this architecture",
    218: "the driver cannot compile this PTX: update the driver, or build a cubin for this architecture",
    701: "too many registers or threads for one block on this GPU: rebuild for this architecture",
    DriverError.CLUSTERS: "this GPU, or this process's share of it (MIG, MPS), has no room for blocks side "
    "by side: give the process a larger share, or call with fewer rows at a time, which go without",
    OUT_OF_MEMORY: "out of device memory",
    **dict.fromkeys((700, 702, 714, 715, 716, 717, 718, 719), _EARLIER),
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
    """The value of a driver call. Raises DriverError with the code's name and the way out."""
    code = result[0]
    if int(code) != 0:
        hint = _WAYS_OUT.get(int(code), "see the CUDA driver API, CUresult")
        raise DriverError(f"{what} failed with {code.name} ({int(code)}): {hint}", int(code))
    return result[1] if len(result) > 1 else None


def _asked(what: str, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The value of a driver's function. Raises DriverError."""
    try:
        result = function(*arguments)
    except ValueError as error:
        raise _unknown(what, error) from error
    return _check(result, what)


def _unknown(what: str, error: ValueError) -> DriverError:
    """A code that a driver newer than cuda-bindings gives: its name is not known there."""
    return DriverError(f"{what} failed with a code that cuda-bindings do not know ({error}): update them")


class Module:
    """Machine code (cubin) or PTX loaded on one device, and its kernels."""

    def __init__(self, image: bytes, device: int, entries: dict[str, int]) -> None:
        """``entries`` maps kernel names to the dynamic shared memory (bytes) they will be launched with."""
        cuda = driver()
        self.device = device
        handle = _asked(f"finding GPU {device}", cuda.cuDeviceGet, device)
        self._context = _asked(f"opening GPU {device}", cuda.cuDevicePrimaryCtxRetain, handle)
        self._launchers: dict[int, StreamLauncher] = {}
        with _Current(self._context):
            self._module = _asked("loading a kernel", cuda.cuModuleLoadData, image)
            self._functions = {name: self._function(name, shared) for name, shared in entries.items()}

    def _function(self, name: str, shared_bytes: int) -> Any:
        cuda = driver()
        function = _asked(f"finding kernel {name}", cuda.cuModuleGetFunction, self._module, name.encode())
        if shared_bytes > STATIC_SHARED_LIMIT:
            attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            asking = f"asking for {shared_bytes} bytes of shared memory for {name}"
            _asked(asking, cuda.cuFuncSetAttribute, function, attribute, shared_bytes)
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
        self._placed: set[tuple[str, int, int]] = set()  # launches whose clusters the GPU has room for

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
            try:
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
                    function = self._functions[entry]
                    if (entry, block, cluster) not in self._placed:
                        self._place(entry, function, config)
                        self._placed.add((entry, block, cluster))
                    result = cuda.cuLaunchKernelEx(config, function, pointers.buffer_info()[0], 0)
            except ValueError as error:
                raise _unknown(f"launching {entry}", error) from error
        if result[0]:
            what = f"launching {entry} on {grid} blocks of {block} threads with {shared_bytes} bytes"
            _check(result, what if cluster == 1 else f"{what}, clusters of {cluster}")

    def _place(self, entry: str, function: Any, config: Any) -> None:
        """Raise what a launch would of clusters that a GPU, or a share of one, has no room for.

        A launch that failed would end the capture of a graph. Other codes are for the launch to tell.
        """
        code, count = self._driver.cuOccupancyMaxActiveClusters(function, config)
        if int(code) == DriverError.CLUSTERS or (not code and not count):
            hint = _WAYS_OUT[DriverError.CLUSTERS]
            raise DriverError(f"no cluster of {entry} can be resident: {hint}", DriverError.CLUSTERS)


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
        _asked("making a context current", driver().cuCtxPushCurrent, self._context)

    def __exit__(self, *_: object) -> None:
        _asked("restoring the context", driver().cuCtxPopCurrent)
