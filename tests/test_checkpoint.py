from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from slamp.checkpoint import Checkpoint
from slamp.errors import ArtifactError, TrainingError


def state() -> dict[str, object]:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "random": torch.get_rng_state()}


def test_a_state_comes_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    saved = state()
    checkpoint.save(saved)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["net"]["weight"], saved["net"]["weight"])
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], saved["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(loaded["random"], saved["random"])


def test_the_last_state_counts_and_nothing_else_is_left(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    for epoch in range(3):
        checkpoint.save({"epoch": epoch})
    assert checkpoint.load() == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_without_a_path_nothing_is_kept() -> None:
    checkpoint = Checkpoint()
    checkpoint.save({"epoch": 1})
    assert checkpoint.load() is None
    checkpoint.clear()


def test_before_the_first_save_there_is_nothing(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "a.pt").load() is None


def test_a_cleared_state_is_gone(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save({"epoch": 1})
    checkpoint.clear()
    checkpoint.clear()
    assert checkpoint.load() is None


@pytest.mark.parametrize("value", [np.random.default_rng(0), Path("x"), lambda: None, np.zeros(2), np.float64(1)])
def test_what_could_not_be_read_back_is_refused_when_saving(value: object, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save({"epoch": 1})
    with pytest.raises(TrainingError, match=r"cannot be kept .*; allowed are tensors, numbers, strings and containers"):
        checkpoint.save({"epoch": 2, "value": value})
    assert checkpoint.load() == {"epoch": 1}


def test_another_content_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match="holds list, not a checkpoint; delete it"):
        Checkpoint(tmp_path / "a.pt").load()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"path": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match="damaged checkpoint"):
        Checkpoint(tmp_path / "a.pt").load()


def test_truncated_and_damaged_files_give_our_error_or_load(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save(state())
    content = (tmp_path / "a.pt").read_bytes()
    rng = np.random.default_rng(0)
    for length in range(0, len(content), len(content) // 40):
        (tmp_path / "a.pt").write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"damaged checkpoint .*; delete it"):
            checkpoint.load()
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.integers(len(content))] = rng.integers(256)
        (tmp_path / "a.pt").write_bytes(damaged)
        try:
            checkpoint.load()
        except ArtifactError:
            refused += 1
    assert refused > 10
