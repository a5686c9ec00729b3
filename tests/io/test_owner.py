"""Networks that one process runs for others. Here it runs them on a CPU; a GPU takes the same way."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclf.domain.volume import Volume
from ssclf.io.extraction.deepbet import BOX_MODEL, MASK_MODEL, MASK_SIZE, BrainExtractor
from ssclf.io.extraction.engines import extract_brain
from ssclf.io.extraction.owner import Cube, NetworkOwner, OwnedNetworks, OwnerAddress
from ssclf.io.models.onnx_session import import_onnxruntime, kept_quiet
from ssclf.io.models.runtime import cuda_if_built
from ssclf.io.workers import run_in_processes

SIDE = 12
Owner = Callable[..., NetworkOwner]
#: Not "CPUExecutionProvider" alone: as on a GPU, this process's own memory is no limit.
CPU: tuple[Any, ...] = (("CPUExecutionProvider", {}),)


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that says twice what it sees, of cubes of one size."""
    onnx = pytest.importorskip("onnx")
    shape = [1, 1, SIDE, SIDE, SIDE]
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("head", "brain")]
    node = onnx.helper.make_node("Add", ["head", "head"], ["brain"])
    graph = onnx.helper.make_graph([node], "doubling", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path_factory.mktemp("networks") / "doubling.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def owner(doubling: Path) -> Iterator[NetworkOwner]:
    with NetworkOwner([doubling], SIDE**3, CPU) as owner:
        yield owner


def cube(seed: int, side: int = SIDE) -> Cube:
    return np.random.default_rng(seed).random((side, side, side), np.float32)


def ask(seed: int, address: OwnerAddress, asked: Path) -> bool:
    """Runs in a worker."""
    networks = OwnedNetworks(address)
    if seed < 0:
        asked.touch()
    answers = [networks.ask("doubling.onnx", cube(abs(seed) + step)) for step in range(3)]
    if seed == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    answer = networks.ask("doubling.onnx", cube(abs(seed)))
    return all(each is not None for each in answers) and np.array_equal(answer, 2 * cube(abs(seed)))  # type: ignore[arg-type]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def callers() -> int:
    return sum(thread.name == "caller" for thread in threading.enumerate())


def until(true: Callable[[], bool]) -> None:
    while not true():  # pytest's limit ends it
        time.sleep(0.05)


def test_many_workers_get_their_own_answers(owner: NetworkOwner, tmp_path: Path) -> None:
    """The one that kills itself between two questions costs itself."""
    work = partial(ask, address=owner.address, asked=tmp_path / "asked")
    outcomes = {o.item: o for o in run_in_processes(work, range(20), workers=4)}
    assert "signal 9" in outcomes.pop(13).error
    assert {o.result for o in outcomes.values()} == {True} and len(outcomes) == 19


def test_a_worker_that_is_killed_while_it_waits_leaves_nothing(owner: NetworkOwner, tmp_path: Path) -> None:
    """`--timeout` kills it in the middle of a call; the memory of its cubes goes with it."""
    asked = tmp_path / "asked"
    work = partial(ask, address=owner.address, asked=asked)
    assert [o.result for o in run_in_processes(work, [1], workers=1)] == [True]
    until(lambda: callers() == 0)
    before = open_files()
    with owner._turn:  # the device is busy
        (outcome,) = run_in_processes(work, [-1], workers=1, timeout_s=5)
        assert "--timeout" in outcome.error and asked.exists() and callers() == 1
    until(lambda: callers() == 0)
    assert open_files() == before
    assert [o.result for o in run_in_processes(work, [1], workers=1)] == [True]


def test_what_the_network_cannot_take_is_refused_and_said_once(
    owner: NetworkOwner, caplog: pytest.LogCaptureFixture
) -> None:
    networks = OwnedNetworks(owner.address)
    with caplog.at_level(logging.WARNING, "ssclf"):
        assert networks.ask("doubling.onnx", cube(0, SIDE - 1)) is None
        assert networks.ask("doubling.onnx", cube(0, SIDE - 2)) is None
        assert networks.ask("other.onnx", cube(0)) is None
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "brain extraction on the GPU failed"
    ]
    assert np.array_equal(networks.ask("doubling.onnx", cube(1)), 2 * cube(1))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_device_that_does_not_start_is_refused(doubling: Path, caplog: pytest.LogCaptureFixture) -> None:
    """onnxruntime takes the CPU without an error; the workers' own processors are as good."""
    with NetworkOwner([doubling], SIDE**3, [("CUDAExecutionProvider", {}), "CPUExecutionProvider"]) as owner:
        assert OwnedNetworks(owner.address).ask("doubling.onnx", cube(0)) is None
    assert not caplog.records


def test_a_build_for_cuda_is_known_without_importing_it() -> None:
    built = "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()
    assert bool(cuda_if_built()) == built


def test_only_who_loads_a_network_is_kept_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Networks are loaded beside a run: what a script printed of its rows meanwhile was lost."""
    with kept_quiet() as printed:
        print("of the library")
        other = threading.Thread(target=print, args=("of the script",))
        other.start()
        other.join()
    print("afterwards")
    assert (printed.getvalue(), capsys.readouterr().out) == (
        "of the library\n",
        "of the script\nafterwards\n",
    )


def test_strangers_are_not_let_in(owner: NetworkOwner) -> None:
    with pytest.raises(AuthenticationError):
        Client(owner.address.path, "AF_UNIX", b"guessed")
    assert Path(owner.address.path).parent.stat().st_mode & 0o077 == 0
    assert owner.address.key.hex() not in repr(owner.address) and "key" not in repr(owner.address)
    assert OwnedNetworks(owner.address).ask("doubling.onnx", cube(0)) is not None


def test_it_ends_whatever_its_thread_does_just_then(doubling: Path) -> None:
    """It waited for ever to be let in by a thread that had seen the end already."""
    for _ in range(200):
        with NetworkOwner([doubling], SIDE**3, CPU) as owner:
            Client(owner.address.path, "AF_UNIX", owner.address.key).close()


def test_nobody_is_answered_any_more(doubling: Path) -> None:
    with NetworkOwner([doubling], SIDE**3, CPU) as owner:
        networks = OwnedNetworks(owner.address)
        assert networks.ask("doubling.onnx", cube(0)) is not None
    assert networks.ask("doubling.onnx", cube(0)) is None
    assert OwnedNetworks(owner.address).ask("doubling.onnx", cube(0)) is None
    assert not Path(owner.address.path).exists()


def extract(seed: int, extractor: BrainExtractor, volume: Volume) -> Any:
    noise = np.random.default_rng(seed).normal(0, 5, volume.data.shape).astype(np.float32)
    return extract_brain(Volume(volume.data + noise, volume.affine), "deepbet", extractor=extractor)


def test_masks_are_those_of_the_workers(
    extraction_models: list[Path], make_volume: Callable[..., Volume]
) -> None:
    alone = BrainExtractor(extraction_models)
    with NetworkOwner(extraction_models, MASK_SIZE**3, CPU) as owner:
        asking = BrainExtractor(extraction_models, owner=owner.address)
        assert pickle.loads(pickle.dumps(asking)).owner == owner.address
        work = partial(extract, extractor=asking, volume=make_volume())
        outcomes = {o.item: o for o in run_in_processes(work, range(3), workers=3)}
        assert set(owner.loaded) == {BOX_MODEL, MASK_MODEL}
    for seed, outcome in outcomes.items():
        assert outcome.result is not None and np.array_equal(
            outcome.result, extract(seed, alone, make_volume())
        )


def test_a_worker_goes_on_alone_where_the_owner_cannot(
    extraction_models: list[Path],
    doubling: Path,
    tmp_path: Path,
    make_volume: Callable[..., Volume],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A GPU whose memory others have taken: the brain is found all the same."""
    others = [tmp_path / BOX_MODEL, tmp_path / MASK_MODEL]
    for path in others:
        path.write_bytes(doubling.read_bytes())  # of another size: it raises
    volume = make_volume()
    with NetworkOwner(others, MASK_SIZE**3, CPU) as owner:
        asking = BrainExtractor(extraction_models, owner=owner.address)
        mask = extract_brain(volume, "deepbet", extractor=asking)
    assert np.array_equal(mask, extract_brain(volume, "deepbet", extractor=BrainExtractor(extraction_models)))
    assert len(caplog.records) == 1
