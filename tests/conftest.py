"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _torch_untouched() -> object:
    """Seed torch for modules a test initializes; leave the global generator as it was found."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
