"""Shared fixtures. This file also puts the helper modules of ``tests/`` on the import path."""

from __future__ import annotations

import os
import secrets
import zlib

import numpy as np
import pytest

# Worker processes of one session find the same.
SEED = int(os.environ.setdefault("FFTGEN_TEST_SEED", str(secrets.randbelow(2**31))))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh random numbers in every session; a failing test shows the seed that brings the same ones back."""
    print(f"FFTGEN_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.encode())])
