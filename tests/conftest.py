"""What all tests share."""

from __future__ import annotations

import os

# Before torch and NumPy are imported: threads of several test processes wait for one another up to ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_untouched() -> object:
    """Seed torch for modules a test initializes; leave the global generator as it was found."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
