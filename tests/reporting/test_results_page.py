"""The page as a browser takes it apart: pictures, probabilities and flags by row, and nothing that runs or loads."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from ssclf.config import MapMethod, PreprocessConfig
from ssclf.domain.flags import FLAGS
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.volume import Volume
from ssclf.io.records.results import ResultRow
from ssclf.reporting.results_page import write_results_page
from ssclf.reporting.thumbnails import thumbnail

CLASSES = ("LGG", "HGG", "healthy")
PICTURE = "data:image/jpeg;base64,/9j/4AAQ+A=="
HOSTILE = (
    '<script>document.title = "run"</script>.nii',
    '"><img src=x onerror="document.title = 1">.nii',
    "a\r\nb</td></tr></table>.nii",
    "'-alert(1)-'.nii",
    "\u202eign.lasrever.nii",
    "\udcff\udcfe.nii",
)
RUN: dict[str, Any] = {
    "ssclf_version": "1.2.3",
    "device": "CPU",
    "seconds": 61.2,
    "models": [
        {
            "name": "glioma-mc3",
            "sha256": "ab" * 32,
            "synthetic": False,
            "training": {
                "class_sources": {"LGG": {"BraTS": 51}, "HGG": {"BraTS": 181}, "healthy": {"IXI": 181}},
                "calibration": {"fitted_on": "validation"},
            },
        }
    ],
}


def classified(path: str, *probabilities: float, **values: Any) -> ResultRow:
    best = CLASSES[int(np.argmax(probabilities))]
    return ResultRow(path, "", "ok", best, probabilities, brain_ml=1300.4, **values)


@dataclass
class Page(HTMLParser):
    """Elements with their attributes, rows with the text of their cells, scripts by type."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    rows: list[tuple[dict[str, str | None], list[str]]] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)
    text: str = ""
    _script: str | None = None
    _in_rows: bool = False
    _in_body: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "table":
            self._in_rows = values.get("id") == "rows"
        elif tag == "tbody":
            self._in_body = self._in_rows
        elif tag == "tr" and self._in_body:
            self.rows.append((values, []))
        elif tag == "td" and self._in_body:
            self.rows[-1][1].append("")
        elif tag == "script":
            self._script = values.get("type") or "text/javascript"
            assert self._script not in self.scripts

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self._in_body = False
        elif tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
            return
        self.text += data
        if self._in_body and self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1] += data

    def pictures(self) -> list[str | None]:
        """By row; None where there is none."""
        data = json.loads(self.scripts["application/json"])
        result: list[str | None] = []
        for tag, values in self.elements:
            if tag == "tr" and "data-status" in values:
                result.append(None)
            elif tag == "img":
                result[-1] = data[int(values["data-picture"] or "")]
        return result


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def build(rows: list[ResultRow], run: dict[str, Any] = RUN, **options: Any) -> Page:
        write_results_page(tmp_path / "results.html", rows, CLASSES, run, **options)
        parsed = Page()
        parsed.feed((tmp_path / "results.html").read_text("utf-8"))
        return parsed

    return build


def test_rows_say_what_the_table_says(page: Callable[..., Page]) -> None:
    rows = [
        classified(
            "b/1.nii",
            0.125,
            0.75,
            0.125,
            flags=("oblique", "low_confidence"),
            extra={"thumbnail": PICTURE},
        ),
        ResultRow("a/2.nii", "4 c0ffee", "failed", error="2.nii: the file is cut short."),
    ]
    result = page(rows)
    (first, cells), (second, failed) = result.rows
    assert [" ".join(cell.split()) for cell in cells] == [
        *("", "b/1.nii", "ok", "HGG", "0.750", "0.125", "0.750", "0.125"),
        *("obliquelow_confidence", "1300"),
    ]
    assert [" ".join(cell.split()) for cell in failed] == [
        *("none", "a/2.nii4 c0ffee", "failed", "", "", "", "", ""),
        *("2.nii: the file is cut short.", ""),
    ]
    assert (first["data-flags"], first["data-p1"], first["data-confidence"]) == (
        "oblique;low_confidence",
        "0.750000",
        "0.750000",
    )
    assert (second["data-status"], second["data-prediction"], second["data-confidence"]) == ("failed", "", "")
    assert result.pictures() == [PICTURE, None]
    chips = [values["title"] for _, values in result.elements if values.get("class") == "flag"]
    assert chips == [FLAGS["oblique"], FLAGS["low_confidence"]]
    options = [values for tag, values in result.elements if tag == "select"]
    assert [values["data-filter"] for values in options] == ["prediction", "status", "flags"]
    sortable = {values["data-key"] for tag, values in result.elements if tag == "th" and "data-key" in values}
    assert sortable <= {name.removeprefix("data-") for name in first}


def test_what_a_clinician_has_to_know_is_there(page: Callable[..., Page]) -> None:
    text = " ".join(page([classified("a.nii", 0.2, 0.7, 0.1)]).text.split())
    for words in (
        "Research use only, not a medical device.",
        "The model knows only LGG, HGG, healthy. Everything else, such as a metastasis, a stroke",
        "Training volumes of glioma-mc3: LGG from BraTS (51); HGG from BraTS (181); healthy from IXI (181).",
        "Its probabilities are calibrated.",
        "“healthy” is T1 without contrast agent",
        "LGG 0, HGG 1, healthy 0, failed 0",
    ):
        assert words in text
    assert "SYNTHETIC" not in text


def test_the_colours_are_explained_by_the_method_that_made_them(page: Callable[..., Page]) -> None:
    rows = [classified("a.nii", 0.2, 0.7, 0.1)]
    words = {
        "cam": "sees in coarse cells",
        "occlusion": "Cubes of 32 mm were hidden one by one:",
        "mirror": "hidden one by one behind the other side’s tissue",
    }
    assert words.keys() == set(get_args(MapMethod))
    for method in words:
        text = " ".join(page(rows, {**RUN, "config": {"map_method": method}}).text.split())
        assert [name for name, told in words.items() if told in text] == [method]
    assert words["cam"] in " ".join(page(rows).text.split())


def test_a_synthetic_model_is_named_so(page: Callable[..., Page]) -> None:
    run = {"models": [{"name": "demo", "sha256": "cd" * 32, "synthetic": True, "training": {}}]}
    text = " ".join(page([classified("a.nii", 0.2, 0.7, 0.1)], run).text.split())
    assert "SYNTHETIC: the model was trained on synthetic volumes" in text
    assert "not stated in the model" in text and "not calibrated" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(page: Callable[..., Page], name: str) -> None:
    row = classified(name, 0.2, 0.7, 0.1, flags=(name.replace(";", ""),), extra={"thumbnail": name})
    failed = ResultRow("x.nii", name, "failed", error=name)
    result, plain = (
        page([row, failed]),
        page([classified("a.nii", 0.2, 0.7, 0.1, flags=("oblique",)), failed]),
    )
    assert [tag for tag, _ in result.elements] == [tag for tag, _ in plain.elements]
    assert not any(key.startswith("on") for _, values in result.elements for key in values)
    assert result.pictures() == [None, None]
    shown = result.rows[0][1][1].strip()
    assert shown.isprintable() and shown.startswith(name[:1] if name[0].isprintable() else "\\u")


@pytest.mark.parametrize(
    "uri",
    ["https://example.org/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", 7, None],
)
def test_only_pictures_are_pictures(page: Callable[..., Page], uri: object) -> None:
    assert page([classified("a.nii", 0.2, 0.7, 0.1, extra={"thumbnail": uri})]).pictures() == [None]


def test_nothing_is_fetched(page: Callable[..., Page]) -> None:
    result = page([classified("a.nii", 0.2, 0.7, 0.1, extra={"thumbnail": PICTURE})])
    assert not {tag for tag, _ in result.elements} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not [values for _, values in result.elements if {"src", "href", "srcset", "action"} & set(values)]
    policy = [v["content"] for _, v in result.elements if v.get("http-equiv") == "Content-Security-Policy"]
    assert policy and (policy[0] or "").startswith("default-src 'none'; img-src data:;")


def test_of_too_many_pictures_those_worth_a_look_stay(page: Callable[..., Page]) -> None:
    picture = {"thumbnail": PICTURE}
    rows = [
        classified("sure.nii", 0.05, 0.9, 0.05, extra=picture),
        classified("stripped.nii", 0.0, 0.95, 0.05, extra=picture, flags=("stripped_by_ssclf",)),
        classified("flagged.nii", 0.0, 0.97, 0.03, extra=picture, flags=("oblique",)),
        classified("unsure.nii", 0.3, 0.4, 0.3, extra=picture),
    ]
    result = page(rows, max_pictures=2)
    assert result.pictures() == [None, None, PICTURE, PICTURE]
    assert "2 volumes that least need a look" in result.text.replace("\n", " ")


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here to open the page in")
def test_a_browser_runs_the_table_and_no_name(tmp_path: Path) -> None:
    rows = [classified(name, 0.2, 0.7, 0.1, extra={"thumbnail": PICTURE}) for name in HOSTILE]
    write_results_page(tmp_path / "results.html", rows, CLASSES, RUN)
    dom = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--user-data-dir={tmp_path / 'profile'}",
            *("--dump-dom", (tmp_path / "results.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "<title>ssclf results: 6 volumes</title>" in dom
    assert '<span id="shown">6 of 6</span>' in dom


def prepare(volume: Volume) -> PreparedVolume:
    return preprocess(volume, PreprocessConfig(spacing=(4.0, 3.0, 3.5)))


def decode(uri: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert uri.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.float32)


def panels(
    picture: np.ndarray[Any, np.dtype[np.float32]],
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Axial, coronal, sagittal: cut at the gaps, below the letters."""
    filled = (picture[12:].max(axis=(0, 2)) > 40).astype(int)
    starts = np.flatnonzero(np.diff(filled, prepend=0) == 1)
    ends = np.flatnonzero(np.diff(filled, append=0) == -1)
    assert len(starts) == 3
    return [picture[12:, a : b + 1] for a, b in zip(starts, ends, strict=True)]


def test_pictures_hang_as_radiologists_expect(make_volume: Callable[..., Volume]) -> None:
    """Evidence in the front, on the left of the body, near the top: in all three slices where it belongs."""
    prepared = prepare(make_volume())
    d, h, w = (np.linspace(-1, 1, n) for n in prepared.data.shape[1:])
    distance = (d[:, None, None] - 0.35) ** 2 + (h[None, :, None] - 0.4) ** 2 + (w[None, None, :] + 0.45) ** 2
    heat = np.exp(-distance / 0.02).astype(np.float32) * 5 * prepared.data.any(axis=0)

    picture = decode(thumbnail(prepared, heat))

    for panel, (row, column) in zip(
        panels(picture), ((-1, 1), (-1, 1), (-1, -1)), strict=True
    ):  # front and top up; the body's left on the right; from the left side, the front on the left
        orange = np.clip(panel[..., 0] - panel[..., 2] - 30, 0, None)
        assert orange.max() > 60
        at = [np.average(np.arange(n), weights=orange.sum(axis=1 - k)) for k, n in enumerate(orange.shape)]
        assert row * (at[0] - panel.shape[0] / 2) > 2 and column * (at[1] - panel.shape[1] / 2) > 2


def test_evidence_against_has_another_colour(make_volume: Callable[..., Volume]) -> None:
    prepared = prepare(make_volume())
    against = decode(thumbnail(prepared, np.full(prepared.data.shape[1:], -3, np.float32)))
    assert (against[..., 2] - against[..., 0]).max() > 60
    assert (against[..., 0] - against[..., 2]).max() < 30


def test_faint_evidence_stays_faint(make_volume: Callable[..., Volume]) -> None:
    prepared = prepare(make_volume())
    faint = decode(thumbnail(prepared, np.full(prepared.data.shape[1:], 0.01, np.float32)))
    assert np.ptp(faint, axis=2).max() < 30


def test_no_picture_where_a_face_may_be_seen(make_volume: Callable[..., Volume]) -> None:
    prepared = prepare(make_volume())
    assert thumbnail(prepared)
    assert not thumbnail(
        PreparedVolume(prepared.data, prepared.affine, prepared.brain_ml, ("assumed_stripped",))
    )
    assert not thumbnail(PreparedVolume(prepared.data, prepared.affine, 2900.0))


def test_pictures_are_small_and_leave_the_background_black() -> None:
    """As large as brains get, and noise, which compresses worst."""
    inside = (np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (90, 110, 95)))) ** 2).sum(axis=0) < 1
    noise = np.random.default_rng(0).random(inside.shape).astype(np.float32) * inside
    uri = thumbnail(PreparedVolume(noise[None], np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]], 2000.0))
    assert len(uri) < 12_500
    assert decode(uri)[-4:, :4].max() < 40


def test_documentation_lists_every_flag() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
    documented = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text, re.MULTILINE)
    assert dict(documented) == FLAGS
