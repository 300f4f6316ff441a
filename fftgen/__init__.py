"""fftgen: a compiler for long convolutions on tensor cores."""

__version__ = "0.1.0"
