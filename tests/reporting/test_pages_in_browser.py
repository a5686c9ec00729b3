"""The pages in a real browser, on a wide window and on a phone: nothing is cut off, and the controls work.

The contents are made to be difficult: long names without a break, many classes, every flag, other scripts.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cv_report import AUDIT, PAPER, write_run
from test_qc import make_row

from ssclf.config import PreprocessConfig
from ssclf.domain.comparison import FoldPredictions
from ssclf.domain.flags import FLAGS
from ssclf.domain.network_scores import Network
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.volume import Volume
from ssclf.io.discovery.scans import Case, Scan
from ssclf.io.records.results import ResultRow
from ssclf.reporting.cv_report import write_cv_report, write_evaluation_report
from ssclf.reporting.qc import Failure, draw_before_and_after, write_qc
from ssclf.reporting.results_page import write_results_page
from ssclf.reporting.thumbnails import thumbnail

# matplotlib's own font has no letters for two of the class names
pytestmark = pytest.mark.filterwarnings("ignore:Glyph:UserWarning")

#: A desktop window, the same with other content beside it, a tablet, a phone, the smallest phone.
WIDTHS = (1300, 1024, 768, 400, 320)
EIGHT = (
    "LGG", "HGG", "healthy", "metastasis", "glioblastoma_IDH-wildtype_WHO_CNS5_grade_4",
    "multiple sclerosis with many lesions of the white matter", "ورم دبقي", "🧠健康な脳",
)  # fmt: skip
UNBROKEN = "sub-" + "0123456789abcdef" * 16
NAMES = (
    "BraTS/BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz",
    "a very long folder name with spaces in it/" * 5 + "scan.nii.gz",
    f"{UNBROKEN}.nii.gz",
    "مستشفى/مريض_٠٠١/صورة_بالرنين_المغناطيسي_للدماغ.nii.gz",
    "🧠" * 60 + ".nii.gz",
    "病院/" + "患者の脳のMRI画像" * 12 + ".nii.gz",
    "\u202eign.lasrever.nii",
)
ERROR = (
    f"{UNBROKEN}.nii.gz: expected a 3D volume, found shape (240, 240, 155, 4); pass one file per contrast. "
    + "It was read from s3://bucket/"
    + "deep/" * 60
)
RUN: dict[str, Any] = {
    "ssclf_version": "1.2.3",
    "device": "NVIDIA H100 80GB HBM3 MIG 1g.10gb, CUDAExecutionProvider",
    "seconds": 61.2,
    "finished": "2025-01-01T12:00:00+00:00",
}

# What may stick out is only what lies in an element that scrolls by itself. Text is measured as it is drawn, line by
# line, so a cell that cuts its text (overflow: hidden, ellipsis) does not pass for one that shows it.
MISFITS = """
const width = document.documentElement.clientWidth, misfits = [];
const hidden = (node) => {
  for (let e = node; e; e = e.parentElement) {
    const style = getComputedStyle(e);
    if (style.clipPath !== "none" || style.visibility === "hidden") return true;
  }
  return false;
};
const box = (element) => {  // where it may draw: the window, or the nearest element that scrolls or cuts
  for (let e = element; e && e !== document.body; e = e.parentElement) {
    const overflow = getComputedStyle(e).overflowX;
    if (overflow === "visible") continue;
    const r = e.getBoundingClientRect();
    if (overflow === "hidden" || overflow === "clip") return [r.left, r.right];
    return [r.left, r.left + Math.max(e.scrollWidth, r.width)];  // reached by scrolling
  }
  return [0, width];
};
const name = (element) => `${element.tagName}.${element.className} "${element.textContent.trim().slice(0, 40)}"`;
for (const element of document.body.querySelectorAll("*")) {
  const style = getComputedStyle(element);
  if (/auto|scroll/.test(style.overflowX)) {
    const r = element.getBoundingClientRect();
    if (r.width && (r.left < -1 || r.right > width + 1)) misfits.push(`${name(element)} scrolls outside the window`);
  }
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), drawn = new Map();
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement;
  if (!node.textContent.trim() || parent.closest("script, style, select") || hidden(parent)) continue;
  const [low, high] = box(parent), range = document.createRange();
  range.selectNodeContents(node);
  for (const r of range.getClientRects())
    if (r.width && (r.left < low - 1 || r.right > high + 1)) {
      misfits.push(`${name(parent)} is drawn from ${r.left} to ${r.right} of ${low} to ${high}`);
      break;
    }
}
for (const element of document.querySelectorAll("img, input, select, button")) {
  const r = element.getBoundingClientRect(), [low, high] = box(element.parentElement);
  if (r.width && !hidden(element) && (r.left < low - 1 || r.right > high + 1))
    misfits.push(`${name(element)} sticks out`);
}
// text of one cell must not run into the next one
for (const cell of document.querySelectorAll("td, th")) {
  if (hidden(cell)) continue;
  const range = document.createRange(), own = cell.getBoundingClientRect();
  range.selectNodeContents(cell);
  for (const r of range.getClientRects())
    if (r.width && (r.left < own.left - 1 || r.right > own.right + 1)) {
      misfits.push(`${name(cell)} runs over its cell`);
      break;
    }
}
return misfits;
"""


@dataclass
class Browser:
    driver: Any

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """A window has a least width, so the viewport is emulated."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())

    def run(self, script: str, *values: object) -> Any:
        return self.driver.execute_script(script, *values)

    def find(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def unfold(self) -> None:
        for details in self.find("details"):
            self.run("arguments[0].open = true", details)

    def wait(self, condition: str, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install ssclf[dev]"
    )
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium and chromedriver here to open pages in (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-quic", "disable-dev-shm-usage"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # both paths are given, so selenium looks for no driver to download
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield Browser(driver)
    driver.quit()


def make_brain(size: int = 24) -> Volume:
    """An ellipsoid with folds, as large as a brain: no patient's."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (size, size + 6, size + 2)), indexing="ij"))
    texture = 400 + 100 * np.sin(7 * grid).sum(axis=0)
    data = np.where((grid**2).sum(axis=0) < 0.8, texture, 0).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = 140 / size, 180 / size, 140 / size
    affine[:, 3] = [-70.0, -90.0, -60.0, 1.0]
    return Volume(data[None], affine)


def results(folder: Path, class_names: tuple[str, ...]) -> Path:
    """Volumes that went well, one with every flag, and failures."""
    prepared = preprocess(make_brain(), PreprocessConfig(spacing=(4.0, 4.0, 4.0)))
    heat = np.zeros(prepared.data.shape[1:], np.float32)
    heat[12:20, 20:30, 10:18], heat[12:20, 8:14, 20:26] = 3.0, -2.0
    picture = {"thumbnail": thumbnail(prepared, heat)}
    random = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(NAMES):
        shares = random.dirichlet(np.full(len(class_names), 0.4))
        flags = [("low_confidence",), tuple(FLAGS), ("unlike_training", "stripped_by_ssclf"), ()][number % 4]
        rows.append(
            ResultRow(
                name, "" if number % 3 else f"3 1.2.840.{'113619.2.' * 6}1", "ok", class_names[int(shares.argmax())],
                tuple(map(float, shares)), flags, brain_ml=1300.4, extra=picture if number != 5 else {},
            )
        )  # fmt: skip
    rows += [
        ResultRow("b/fails.nii", "", "failed", error=ERROR),
        ResultRow(UNBROKEN, UNBROKEN, "failed", error=UNBROKEN),
    ]
    models = [
        {
            "name": name, "sha256": "ab" * 32, "synthetic": False,
            "training": {"class_sources": {c: {"BraTS": 51, UNBROKEN[:70]: 3} for c in class_names}},
        }
        for name in ("glioma-mc3", UNBROKEN)
    ]  # fmt: skip
    write_results_page(folder / "results.html", rows, class_names, {**RUN, "models": models})
    return folder / "results.html"


def qc(folder: Path) -> Path:
    volume = make_brain()
    brain = volume.data[0] != 0
    prepared = preprocess(volume, PreprocessConfig(spacing=(4.0, 4.0, 4.0)), brain)
    pictures = draw_before_and_after(volume, brain, prepared)
    usual = {
        "subject": "BraTS20_Training_001", "contrasts": "t1ce", "extraction": "deepbet", "shape": "80 x 96 x 80",
        "original_spacing": "1 x 0.4688 x 0.4688", "original_shape": "155 x 240 x 240", "original_orientation": "LPS",
        "original": NAMES[0],
    }  # fmt: skip
    rows = [
        make_row(0, **usual),
        make_row(
            1, **{**usual, "flags": ";".join(FLAGS), "original": NAMES[1], "contrasts": "t1;t1ce;t2;flair"}
        ),
        make_row(
            2, **{**usual, "subject": UNBROKEN, "label": EIGHT[4], "source": UNBROKEN, "original": NAMES[2]}
        ),
        make_row(3, **{**usual, "subject": NAMES[3], "label": EIGHT[5], "original": NAMES[4], "drawn": ""}),
    ]
    failures = [
        Failure(Case(Scan(NAMES[0], ()), "s", "HGG", "BraTS"), ERROR),
        Failure(Case(Scan(UNBROKEN, (), UNBROKEN), "s", EIGHT[4], "x"), UNBROKEN),
    ]
    write_qc(
        folder / "qc.html", rows, lambda _: pictures, failures,
        settings="Network input: 2 x 2 x 2 mm, RAS, z-score inside the brain; settings 0123456789ab.",
        show_heads=False, synthetic=True,
    )  # fmt: skip
    return folder / "qc.html"


def cross_validation(folder: Path, class_names: tuple[str, ...]) -> Path:
    right = [*range(len(class_names)), *range(len(class_names))]
    wrong = [*right[:-2], 0, 0]
    variants = tuple(
        f"{name}/{start}" for name in ("mc3", "r2plus1d", "r3d") for start in ("scratch", "pretrained")
    )
    audit = {
        "findings": [
            {**finding, "name": name, "per_class": dict.fromkeys(class_names, 0.9), "best": class_names[-1]}
            for finding in AUDIT["findings"]
            for name in ("header fields", "shape of the brain's outline", "intensities inside the brain")
        ],
        "warnings": [f"class {class_names[0]} comes from {UNBROKEN} only", *AUDIT["warnings"]],
    }
    run = write_run(
        folder / "cv", variants=variants, class_names=class_names, audit=audit,
        finished={variant: {1: right, 2: wrong} for variant in variants[:4]},
    )  # fmt: skip
    return write_cv_report(run)


def evaluation(folder: Path) -> Path:
    targets = np.arange(32) % 8
    logits = 3 * np.eye(8)[np.where(np.arange(32) < 4, 0, targets)]
    names = tuple(map(str, range(32)))
    network = Network(
        UNBROKEN[:80], {1: FoldPredictions(names, names, targets, logits)}, {1: [UNBROKEN[:90]] * 32}, {1: 1.3}, 1.3,
        EIGHT,
    )  # fmt: skip
    return write_evaluation_report(
        folder, network, synthetic=False, cohort={name: {UNBROKEN: 3, "IXI": 1} for name in EIGHT}, seen=3,
        facts=[("model", f"{UNBROKEN}, sha256 {'ab' * 32}"), ("volumes", "32 scored, 3 failed")],
    )  # fmt: skip


PAGES: dict[str, Callable[[Path], Path]] = {
    "results": lambda folder: results(folder, ("LGG", "HGG", "healthy")),
    "results of eight classes": lambda folder: results(folder, EIGHT),
    "qc": qc,
    "cross-validation": lambda folder: cross_validation(folder, PAPER),
    "cross-validation of eight classes": lambda folder: cross_validation(folder, EIGHT),
    "evaluation": evaluation,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if "cross" in name or name == "evaluation":
            pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install ssclf[train]")
        if name not in made:
            made[name] = PAGES[name](tmp_path_factory.mktemp("page"))
        return made[name]

    return make


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window(
    browser: Browser, pages: Callable[[str], Path], name: str, width: int
) -> None:
    """Used to scroll sideways: results and qc at 1300 px, and everything on a phone."""
    browser.open(pages(name), width)
    browser.unfold()
    browser.run("window.dispatchEvent(new Event('beforeprint'))")  # pictures load
    browser.wait("return [...document.images].every((image) => image.complete && image.naturalWidth)")
    scrolls, fits = browser.run("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert scrolls <= fits
    assert browser.run(MISFITS) == []
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("name", PAGES)
def test_every_cell_is_drawn_with_its_label_and_tables_stay_tables(
    browser: Browser, pages: Callable[[str], Path], name: str, width: int
) -> None:
    browser.open(pages(name), width)
    browser.unfold()
    cells = browser.run(
        """return [...document.querySelectorAll("td[data-label]")].filter((cell) => cell.textContent.trim()).map(
        (cell) => { const r = cell.getBoundingClientRect(), label = getComputedStyle(cell, "::before").content;
        return [r.width * r.height > 0, cell.dataset.label, label,
        getComputedStyle(cell).display, cell.className]; })"""
    )
    assert len(cells) > 20
    for drawn, label, shown, display, kind in cells:
        assert drawn and label
        if display == "block" and not {"title", "picture"} & set(kind.split()):
            assert label in shown
    if width == 400:
        assert {display for *_, display, _ in cells} == {"block"}
    # what a screen reader is given, however the table is laid out
    tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = Counter(node["role"]["value"] for node in tree if not node["ignored"])
    tables = browser.run("return document.querySelectorAll('table[role=table]').length")
    assert roles["table"] >= tables > 0 and roles["rowgroup"] >= tables
    assert roles["cell"] + roles["gridcell"] >= len(cells)
    assert roles["columnheader"] > 0 and roles["row"] > roles["table"]


def erase(field: Any) -> None:
    """As people do it: WebDriver's own `clear` sends other events."""
    field.send_keys("\ue009a")  # control and a
    field.send_keys("\ue003")  # backspace


@pytest.mark.parametrize("width", [1300, 400])
def test_the_results_can_be_searched_sorted_and_filtered(
    browser: Browser, pages: Callable[[str], Path], width: int
) -> None:
    browser.open(pages("results"), width)
    shown = "return [...document.querySelectorAll('#rows tbody tr')].filter((row) => row.offsetHeight)"

    def column(key: str) -> list[str]:
        return list(browser.run(f"{shown}.map((row) => row.dataset[arguments[0]])", key))

    everything = column("path")
    assert len(everything) == len(NAMES) + 2

    search, limit = browser.find("#search")[0], browser.find("input[data-most]")[0]
    search.send_keys("training_001")
    assert column("path") == [path for path in everything if path.startswith("BraTS/")]
    assert browser.find("#shown")[0].text == f"1 of {len(everything)}"
    search.send_keys(" nowhere")
    assert column("path") == []
    erase(search)
    assert column("path") == everything

    for key, value in (("status", "failed"), ("prediction", "HGG"), ("flags", "oblique")):
        (menu,) = browser.find(f"select[data-filter={key}]")
        menu.click()
        menu.send_keys(value + "\n")
        assert column(key) and all(value in found.split(";") for found in column(key))
        assert len(column(key)) < len(everything)
        menu.click()
        menu.send_keys("any\n")
    assert column("path") == everything

    limit.send_keys("0.5")
    assert column("confidence") and all(float(value) <= 0.5 for value in column("confidence"))
    erase(limit)

    (button,) = browser.find("th[data-key=confidence] button")
    button.click()
    up = [float(value) for value in column("confidence") if value]
    assert up == sorted(up) and column("confidence")[-2:] == ["", ""]
    button.click()
    assert [float(value) for value in column("confidence") if value] == up[::-1]
    assert browser.run("return arguments[0].parentElement.ariaSort", button) == "descending"
    assert column("confidence")[-2:] == ["", ""]  # failed volumes come last both ways
    assert browser.complaints() == []
