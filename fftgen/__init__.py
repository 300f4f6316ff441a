"""fftgen: a compiler for long convolutions on tensor cores.

``get_conv`` compiles at run time, ``load`` reads an artifact, ``fftconv`` is the functional form;
``plan`` and ``build`` show and keep what the compiler makes; ``nn`` has layers. Importing this touches no
GPU and no compiler; PyTorch is imported with the first name that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Conv": "fftgen.conv",
    "Spectrum": "fftgen.spectra",
    "get_conv": "fftgen.conv",
    "fftconv": "fftgen.functional",
    "load": "fftgen.conv",
    "plan": "fftgen.api",
    "build": "fftgen.api",
}
__all__ = ["Conv", "Spectrum", "__version__", "build", "fftconv", "get_conv", "load", "nn", "plan"]

if TYPE_CHECKING:
    from fftgen import nn
    from fftgen.api import build, plan
    from fftgen.conv import Conv, get_conv, load
    from fftgen.functional import fftconv
    from fftgen.spectra import Spectrum


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "nn":
        return import_module("fftgen.nn")
    if name not in _HOMES:
        raise AttributeError(f"module 'fftgen' has no attribute {name!r}")
    if _HOMES[name] != "fftgen.api":  # that one knows no tensors
        import_module("fftgen.op")  # registers torch.ops.fftgen
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)  # not asked for again
    return found
