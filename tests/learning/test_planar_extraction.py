"""deepbet's layers as planar ones: each against torch's own in three dimensions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from ssclf.errors import ModelError  # noqa: E402
from ssclf.learning import planar_extraction  # noqa: E402
from ssclf.learning.planar_extraction import PlanarExtraction  # noqa: E402

#: Of a stack of planes (D, C, H, W); in portions of two windows at least, the last of which may be shorter.
SHAPES = [(8, 6, 10), (16, 4, 2), (24, 14, 6)]


@pytest.fixture(params=[1, 8 << 20], ids=["small portions", "one portion"])
def portion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planar_extraction, "_PORTION_BYTES", request.param)


def as_planes(volume: Tensor) -> Tensor:
    return volume[0].transpose(0, 1)


def equal(parts: list[Tensor], expected: Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(torch.cat(parts), as_planes(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("portion")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "out", "kernel"), [(1, 16, 7), (16, 16, 3), (5, 32, 3), (8, 8, 3), (4, 4, 3), (6, 3, 1)]
)
def test_convolutions(channels: int, out: int, kernel: int, stride: int, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(out, channels, kernel, kernel, kernel) / (channels * kernel**3) ** 0.5
    volume = torch.randn(1, channels, *shape)
    layer = planar_extraction._Convolution(weight, stride=stride)
    planes = as_planes(volume)
    expected = F.conv3d(volume, weight, None, stride, kernel // 2)
    equal(layer([planes]), expected)
    equal(layer([planes[:1], planes[1:3], planes[3:]]) if kernel > 1 else layer([planes]), expected)


@pytest.mark.usefixtures("portion")
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 5), (7, 1, 2)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (2, 0)])
@pytest.mark.parametrize("biased", [False, True])
def test_transposed_convolutions(
    kernel: int, padding: int, biased: bool, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    weight, volume = torch.randn(6, 5, kernel, kernel, kernel), torch.randn(1, 6, *shape)
    bias = torch.randn(5) if biased else None
    layer = planar_extraction._Transposed(weight, padding=padding, bias=bias)
    planes = as_planes(volume)
    expected = F.conv_transpose3d(volume, weight, bias, 2, padding, padding)
    equal(layer([planes]), expected)
    if len(planes) > 3:
        equal(layer([planes[:2], planes[2:3], planes[3:]]), expected)


def test_normalisation_over_parts() -> None:
    torch.manual_seed(0)
    volume = 3 + 2 * torch.randn(1, 4, 5, 8, 16)
    planes = as_planes(volume)
    equal(planar_extraction._normalise([planes[:2], planes[2:]]), F.instance_norm(volume))


@pytest.mark.usefixtures("portion")
def test_pooling_before_normalisation_is_pooling_behind_it() -> None:
    network = PlanarExtraction(random_weights())
    head = torch.rand(1, 1, 32, 64, 32)
    convolved = F.conv3d(head, random_weights()["init.0.weight"], None, 2, 3)
    expected = F.max_pool3d(F.relu(F.instance_norm(convolved)), 3, 2, 1)
    equal([network._begin(head[0].transpose(0, 1))], expected)


def random_weights() -> dict[str, Tensor]:
    """With deepbet's names and shapes, which the class knows."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in planar_extraction.expected_shapes().items()
    }


def test_what_is_not_deepbet_is_refused() -> None:
    weights = random_weights()
    missing = {name: tensor for name, tensor in weights.items() if name != "conv.0.weight"}
    with pytest.raises(ModelError, match=r"conv\.0\.weight: expected .*\(8, 8, 3, 3, 3\).* none; install"):
        PlanarExtraction(missing)
    with pytest.raises(ModelError, match=r"up9\.weight: expected .* none .* found \(2,\)"):
        PlanarExtraction({**weights, "up9.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"init\.0\.weight"):
        PlanarExtraction({**weights, "init.0.weight": torch.zeros(16, 1, 5, 5, 5)})
