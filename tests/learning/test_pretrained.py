from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssclf.config import PaperArchitecture
from ssclf.errors import ModelError
from ssclf.learning.networks import TORCHVISION_NAMES, build_network
from ssclf.learning.pretrained import find_weights, import_weights, load_pretrained, verify_weights
from ssclf.learning.vision import video_models


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SSCLF_WEIGHTS", str(tmp_path / "weights"))


def kinetics(architecture: PaperArchitecture, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file in torchvision's format; its name carries its own hash. Random weights."""
    torch.manual_seed(7)
    network = getattr(video_models, TORCHVISION_NAMES[architecture])(weights=None, num_classes=400)
    for name, buffer in network.named_buffers():
        if buffer.dtype.is_floating_point:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
        else:
            buffer.fill_(11)
        assert "running" in name or "tracked" in name
    state = network.state_dict()
    path = folder / "download.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / f"{TORCHVISION_NAMES[architecture]}-{digest[:8]}.pth"), state


@pytest.mark.parametrize("architecture", ["mc3", "r2plus1d", "r3d"])
def test_everything_but_stem_and_head_is_loaded(architecture: PaperArchitecture, tmp_path: Path) -> None:
    path, weights = kinetics(architecture, tmp_path)
    network = build_network(architecture, channels=1, classes=3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert load_pretrained(network, architecture, path=path).file == path.name
    assert set(network.random) == {"stem.0", "stem.1"} | ({"stem.3", "stem.4"} & {key[:6] for key in before})
    for key, value in network.state_dict().items():
        own = key.startswith(("stem.", "fc."))
        assert torch.equal(value, before[key] if own else weights[key]), key
    assert sum(not key.startswith(("stem.", "fc.")) for key in before) > 90


def test_the_small_network_has_no_such_weights() -> None:
    with pytest.raises(ModelError, match="none for small"):
        load_pretrained(build_network("small", channels=1, classes=3), "small")


@pytest.mark.parametrize("channels", [1, 2])
def test_an_averaged_stem_answers_equal_contrasts_as_it_did_grey_frames(
    channels: int, tmp_path: Path
) -> None:
    path, weights = kinetics("r2plus1d", tmp_path)
    network = build_network("r2plus1d", channels=channels, classes=3)
    load_pretrained(network, "r2plus1d", stem="mean", path=path)
    reference = video_models.r2plus1d_18(weights=None, num_classes=400)
    reference.load_state_dict(weights)
    grey = torch.rand(1, 1, 5, 12, 14)
    with torch.no_grad():
        expected = reference.eval().stem(grey.expand(-1, 3, -1, -1, -1))
        found = network.eval().stem(grey.expand(-1, channels, -1, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    state = network.state_dict()
    assert all(torch.equal(state[k], weights[k]) for k in state if not k.startswith(("stem.0.", "fc.")))


def test_without_the_file_nothing_is_downloaded_and_the_error_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError) as caught:
        load_pretrained(build_network("mc3", channels=1, classes=3), "mc3")
    message = str(caught.value)
    for part in ("mc3_18-a90a0ba3.pth", "a90a0ba3", str(tmp_path / "weights"), "weights import", "https://"):
        assert part in message


def test_import_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the published files are not here: a file of ours takes the published one's place
    path, weights = kinetics("r3d", tmp_path)
    enum = getattr(video_models, "R3D_18_Weights").KINETICS400_V1  # noqa: B009 - mypy knows no enums of torchvision
    monkeypatch.setattr(enum.value, "url", f"https://example.org/models/{path.name}", raising=False)
    assert find_weights("r3d").name == path.name
    assert [file.path for file in verify_weights()] == [None, None, None]
    target = import_weights(path)
    assert target == tmp_path / "weights" / path.name
    assert [file.path for file in verify_weights() if file.architecture == "r3d"] == [target]
    network = build_network("r3d", channels=1, classes=3)
    assert load_pretrained(network, "r3d").file == path.name
    assert torch.equal(network.state_dict()["layer4.1.conv2.0.weight"], weights["layer4.1.conv2.0.weight"])
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(ModelError, match="expected a SHA-256 that starts with"):
        verify_weights()
    hub = tmp_path / "torch" / "hub" / "checkpoints" / path.name
    hub.parent.mkdir(parents=True)
    hub.write_bytes(path.read_bytes())
    assert find_weights("r3d").path == hub


@pytest.mark.parametrize("name", ["mc3-20240115.pth", "mc3-20240115093000.pth", "mc3-00000000.pth"])
def test_a_date_in_a_name_is_no_hash(name: str, tmp_path: Path) -> None:
    """Such a file was taken for a download that had been cut short."""
    path, _ = kinetics("mc3", tmp_path)
    network = build_network("mc3", channels=1, classes=3)
    assert load_pretrained(network, "mc3", path=path.rename(tmp_path / name)).file == name


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path, weights = kinetics("mc3", tmp_path)
    with pytest.raises(ModelError, match="expected one of torchvision's files"):
        import_weights(path)
    published = tmp_path / "mc3_18-a90a0ba3.pth"
    published.write_bytes(b"not it")
    with pytest.raises(ModelError, match="fetch it again"):
        import_weights(published)
    with pytest.raises(ModelError, match="fetch it again"):
        load_pretrained(build_network("mc3", channels=1, classes=3), "mc3", path=published)
    with pytest.raises(ModelError, match=r"weights of torchvision's r3d_18, found \d+ of"):
        load_pretrained(build_network("r3d", channels=1, classes=3), "r3d", path=path)
    del weights["layer2.0.conv1.0.weight"]
    torch.save(weights, tmp_path / "own.pth")
    with pytest.raises(ModelError, match=r"1 of \d+ tensors missing .* layer2\.0\.conv1\.0\.weight"):
        load_pretrained(build_network("mc3", channels=1, classes=3), "mc3", path=tmp_path / "own.pth")
    with pytest.raises(ModelError, match="found none"):
        load_pretrained(build_network("mc3", channels=1, classes=3), "mc3", path=tmp_path / "nowhere.pth")
