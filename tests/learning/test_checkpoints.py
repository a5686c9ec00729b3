from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from ssclf.errors import ModelError
from ssclf.learning.checkpoints import load_checkpoint, save_checkpoint


def test_a_state_survives(tmp_path: Path) -> None:
    state = {
        "network": {"w": torch.arange(6.0).reshape(2, 3)},
        "epoch": 3,
        "best": None,
        "losses": [0.5, 0.25],
    }
    save_checkpoint(state, tmp_path / "checkpoints" / "last.pt")
    loaded = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert torch.equal(loaded.pop("network")["w"], state.pop("network")["w"])  # type: ignore[index]
    assert loaded == state
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.pt"
    if protocol == "torch":
        torch.save({"network": Attack()}, path)
    else:
        path.write_bytes(pickle.dumps({"network": Attack()}))
    with pytest.raises(ModelError, match="nothing in it was run"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_missing_damaged_and_other_files_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(ModelError, match="found none"):
        load_checkpoint(path)
    save_checkpoint({"network": {"w": torch.rand(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(ModelError, match="damaged"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="found list"):
        load_checkpoint(path)
