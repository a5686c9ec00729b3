"""A wrong answer cannot be had silently: what was edited in a run or a bundle is refused, or changes no answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssclf.config import TrainConfig
from ssclf.domain.written import MARKS
from ssclf.errors import ModelError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.runtime import open_classifier

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(300)

#: Values that an edit may put anywhere.
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), st.floats(0.1, 9),
    st.sampled_from(["", "HGG", "LGG", "t1", "mc3", "r3d"]),
    st.lists(st.sampled_from(["HGG", "LGG", "healthy", "t1"]), max_size=4),
)  # fmt: skip


def places(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in JSON values something can be edited."""
    inside: list[tuple[Any, ...]] = []
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if (*at, key) != (MARKS,):  # who takes all marks away has a file of an earlier version
            inside.append((*at, key))
        if isinstance(value, (dict, list)):
            inside += places(value, (*at, key))
    return inside


def edited(text: str, data: st.DataObject) -> str:
    """JSON with one to three values put in, taken out, or the items of a list in another order."""
    values = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(places(values)))
        owner = values
        for step in way:
            owner = owner[step]
        kind = data.draw(st.sampled_from(["put", "take", "turn"]))
        if kind == "turn" and isinstance(owner[last], list):
            owner[last] = data.draw(st.permutations(owner[last]))
        elif kind == "take":
            del owner[last]
        else:
            owner[last] = data.draw(VALUES)
        if not places(values):
            break
    return json.dumps(values)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_edited_bundle_is_refused_or_answers_as_before(
    data: st.DataObject, tiny_bundle: Path, other_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("edited") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    (folder / "SHA256SUMS").unlink()
    spec = folder / "spec.json"
    spec.write_text(edited(spec.read_text(), data))
    write_checksums(folder)  # as somebody would who wants to be believed
    before = open_bundle(tiny_bundle)
    try:
        after = open_bundle(folder)
    except ModelError:
        return
    for name in ("architecture", "class_names", "preprocess", "temperature"):
        assert getattr(after.spec, name) == getattr(before.spec, name), name
    volume = np.random.default_rng(0).random((1, 1, 12, 20, 18), np.float32)
    answers = [open_classifier(each, device="cpu", threads=1).classify(volume) for each in (before, after)]
    np.testing.assert_array_equal(answers[0].logits, answers[1].logits)


def test_another_network_in_a_bundle_brings_its_own_hash(
    tiny_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    shutil.copy(other_bundle / "model.onnx", folder / "model.onnx")
    with pytest.raises(ModelError, match="SHA-256"):
        open_bundle(folder)
    (folder / "SHA256SUMS").unlink()
    write_checksums(folder)
    assert open_bundle(folder).sha256 != open_bundle(tiny_bundle).sha256


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_edited_run_is_refused_or_exported_as_before(
    data: st.DataObject,
    preprocessed: Callable[..., Path],
    finished: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from ssclf.workflows.export import read_run
    from ssclf.workflows.train import Machine, train

    if not finished:
        config = TrainConfig(epochs=1, batch_size=2, validation=0.3, augmentation="none")
        run = tmp_path_factory.mktemp("runs") / "run"
        machine = Machine(device="cpu", workers=0)
        finished.append(train(preprocessed(shape=(2, 17, 9)), run, config, machine=machine).run)
    network, before = read_run(finished[0], name="run")
    copy = Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("copies") / "run"))
    file = copy / data.draw(st.sampled_from(["provenance.json", "config.json"]))
    file.write_text(edited(file.read_text(), data))
    try:
        again, after = read_run(copy, name="run")
    except ModelError:
        return
    finally:
        shutil.rmtree(copy)
    assert after == before
    for name, value in network.state_dict().items():
        assert again.state_dict()[name].equal(value), name
