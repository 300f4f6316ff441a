"""Layers around the convolution: a drop-in for FlashFFTConv, a filter of one's own, LongConv, H3Conv.

``parameter_groups`` gives an optimizer the learning rates that the layers' filters ask for.
"""

from fftgen.nn.drop_in import FlashFFTConv
from fftgen.nn.fft_conv import FFTConv
from fftgen.nn.h3_conv import H3Conv
from fftgen.nn.long_conv import LongConv
from fftgen.nn.optimizer import parameter_groups
from fftgen.nn.regularize import geometric, smooth, squash

__all__ = [
    "FFTConv",
    "FlashFFTConv",
    "H3Conv",
    "LongConv",
    "geometric",
    "parameter_groups",
    "smooth",
    "squash",
]
