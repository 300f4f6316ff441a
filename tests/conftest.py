"""Shared fixtures. This file also puts the helper modules of ``tests/`` on the import path."""

from __future__ import annotations

import os
import secrets
import zlib

import numpy as np
import pytest

SEED = int(os.environ.get("FFTGEN_TEST_SEED", secrets.randbelow(2**31)))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers in every session; a failing test shows the seed that brings the same ones back."""
    print(f"FFTGEN_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])
