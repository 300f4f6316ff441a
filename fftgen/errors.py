"""The errors that fftgen raises, sorted by who can do something about them.

Every message names the value that was passed, the limit it broke and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence


class FFTGenError(Exception):
    """Base of every error raised on purpose by fftgen."""


class InputError(FFTGenError, ValueError):
    """What the caller passed cannot be served: shape, dtype, device, length, option."""


class NoPlanError(FFTGenError):
    """No legal plan exists for a problem on a target.

    ``reasons`` holds one line per candidate that was struck out, with the rule that did it.
    """

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        self.reasons = tuple(reasons)
        super().__init__("\n  ".join([message, *self.reasons]))


class ToolchainError(FFTGenError):
    """A part of the CUDA toolchain is missing or unusable: NVRTC, its headers, the driver, a GPU."""


class DriverError(ToolchainError):
    """The CUDA driver refused a call. ``code``: its CUresult; 0: one that cuda-bindings do not know."""

    CLUSTERS = 912  # no room for blocks side by side: CUDA_ERROR_INVALID_CLUSTER_SIZE

    def __init__(self, message: str, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class CompileError(FFTGenError):
    """NVRTC refused a generated source. ``log`` is the compiler's own output."""

    def __init__(self, message: str, log: str = "") -> None:
        self.log = log
        super().__init__(f"{message}\n{log}" if log else message)


class ArtifactError(FFTGenError):
    """An artifact or a cache entry is damaged, of another schema, or for other targets."""


class InternalError(FFTGenError):
    """An invariant of fftgen itself is broken: a defect here, never the caller's fault."""
