"""``python -m fftgen``."""

from fftgen.cli import main

main()
