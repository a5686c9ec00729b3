"""qc.html shows brains and no faces, every row, and nothing that a file name could smuggle in."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ssclf.config import PreprocessConfig
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import OutputError
from ssclf.io.discovery.scans import Case, Scan
from ssclf.reporting.qc import COLUMNS, Failure, draw_before_and_after, write_qc

MakeVolume = Callable[..., Volume]


@pytest.fixture
def head(make_volume: MakeVolume) -> tuple[Volume, Mask]:
    """Everything around the brain is as bright as can be: any of it in a picture is seen."""
    volume = make_volume((30, 34, 32), (5.0, 4.0, 4.5))
    brain = volume.data[0] != 0
    return Volume(np.where(brain, volume.data, 2000).astype(np.float32), volume.affine), brain


def prepare(head: tuple[Volume, Mask], **changes: object) -> PreparedVolume:
    prepared = preprocess(head[0], PreprocessConfig(spacing=(4.0, 4.0, 4.0)), head[1])
    values = {"data": prepared.data, "affine": prepared.affine, "brain_ml": 1200.0, "flags": ()}
    return PreparedVolume(**{**values, **changes})  # type: ignore[arg-type]


def pixels(uri: str) -> NDArray[np.int16]:
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(np.int16)


def grey_share(uri: str) -> float:
    """Share of pixels that are neither black nor coloured as outlines are."""
    rgb = pixels(uri)
    return float(((rgb.min(axis=2) > 60) & (np.ptp(rgb, axis=2) < 40)).mean())


def make_row(number: int, **changes: str) -> dict[str, str]:
    row = {key: f"{key}{number}" for key, *_ in COLUMNS}
    row |= {"label": "HGG", "source": "here", "flags": "", "brain_ml": "1234.5", "drawn": "yes"}
    row |= {"original_shape": "3 x 4 x 5", "original_orientation": "RAS"}
    return row | changes


def write(path: Path, rows: Sequence[Mapping[str, str]], *failures: Failure, synthetic: bool = False) -> str:
    write_qc(
        path,
        rows,
        lambda index: (f"data:image/jpeg;base64,B{index}", f"data:image/jpeg;base64,A{index}"),
        failures,
        settings="2 mm",
        show_heads=False,
        synthetic=synthetic,
    )
    return path.read_text("utf-8")


def test_nothing_outside_the_brain_is_drawn_unless_asked(head: tuple[Volume, Mask]) -> None:
    before, after = draw_before_and_after(*head, prepare(head))
    whole, _ = draw_before_and_after(*head, prepare(head), show_heads=True)
    assert 0.2 < grey_share(before) < 0.7 and 0.2 < grey_share(after) < 0.7
    assert grey_share(whole) > grey_share(before) + 0.15


@pytest.mark.parametrize("doubt", [{"flags": ("assumed_stripped",)}, {"brain_ml": 3100.0}])
def test_where_the_brain_is_in_doubt_nothing_is_drawn(
    head: tuple[Volume, Mask], doubt: dict[str, object]
) -> None:
    assert draw_before_and_after(*head, prepare(head, **doubt)) == ("", "")
    assert all(draw_before_and_after(*head, prepare(head, **doubt), show_heads=True))


def test_the_edge_of_the_brain_lies_on_it_after_resampling_and_cropping(head: tuple[Volume, Mask]) -> None:
    cropped = preprocess(
        head[0], PreprocessConfig(spacing=(4.0, 4.0, 4.0), crop="brain", plane="coronal"), head[1]
    )
    for picture in draw_before_and_after(*head, cropped):
        rgb = pixels(picture)
        edge = (rgb[..., 1] - rgb[..., 0]) > 90
        rows, columns = np.nonzero(edge)
        grey = (rgb.min(axis=2) > 60) & (np.ptp(rgb, axis=2) < 40)
        assert edge.mean() > 0.01
        grey[:14] = False  # letters say left and right up there
        below, left, right = np.nonzero(grey)[0].max(), np.nonzero(grey)[1].min(), np.nonzero(grey)[1].max()
        assert rows.max() >= below and columns.min() <= left and columns.max() >= right


def test_every_row_is_there_once_with_both_pictures(tmp_path: Path) -> None:
    page = write(tmp_path / "qc.html", [make_row(n) for n in range(40)] + [make_row(40, drawn="")])
    assert page.count("<tr data-subject=") == 41
    assert re.findall(r'data-picture="(\d+)"', page) == [str(n) for n in range(80)]
    assert page.count("data:image/jpeg;base64,B") == 41
    assert "may show" in page


def test_names_are_shown_and_not_run(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    failure = Failure(Case(Scan(evil, ()), "s", evil, "x"), evil)
    page = write(tmp_path / "qc.html", [make_row(0, subject=evil, original=evil, source=evil)], failure)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:|//)", page)


def test_synthetic_data_is_called_so(tmp_path: Path) -> None:
    assert "Synthetic data" in write(tmp_path / "a.html", [make_row(0)], synthetic=True)
    assert "Synthetic data" not in write(tmp_path / "b.html", [make_row(0)])


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "qc.html").mkdir()
    with pytest.raises(OutputError, match=r"qc\.html"):
        write(tmp_path / "qc.html", [make_row(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["qc.html"]
