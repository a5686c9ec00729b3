"""Networks of brain extraction that one process owns and runs for others: on a GPU, where a copy for each worker would
take its memory, and have to wait all the same.

A worker asks through a socket in the private folder of multiprocessing, and proves itself by a key; the cubes lie in
memory that both see. That memory has no name (memfd): it goes with the last process that holds it, however that ended,
and a container needs no larger /dev/shm. One cube is under way for each worker and one at a time on the device. What
travels is JSON: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError, reduction
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import SsclfError
from ssclf.io.models.onnx_session import open_session

log = logging.getLogger(__name__)

#: What goes wrong between two processes of which one ends.
_GONE = (OSError, EOFError, AuthenticationError)
#: Longest question or answer.
_LONGEST = 1 << 12
#: Callers that may wait to be let in; how long until the next try where none can be.
_BACKLOG, _PAUSE_S = 128, 0.1
#: How long a network that runs is waited for.
_END_S = 30.0

Cube = NDArray[np.float32]


@dataclass(frozen=True)
class OwnerAddress:
    """Where a worker finds the owner; travels to workers.

    Attributes:
        voxels: of the largest cube that it takes.
    """

    path: str
    key: bytes = field(repr=False)
    voxels: int


def lend(
    models: Sequence[Path], voxels: int, providers: Sequence[Any], *, threads: int = 1
) -> contextlib.AbstractContextManager[NetworkOwner | None]:
    """See `NetworkOwner`; None where there is nothing to lend, or this system cannot: workers then do without."""
    if not (models and providers):
        return contextlib.nullcontext()
    try:
        return NetworkOwner(models, voxels, providers, threads=threads)
    except (AttributeError, OSError) as exc:  # not Linux, or a system that forbids it
        log.warning("brain extraction stays on the processors: %s", exc)
        return contextlib.nullcontext()


class NetworkOwner:
    """Answers workers until it is closed; networks are loaded with their first question."""

    def __init__(
        self, models: Sequence[Path], voxels: int, providers: Sequence[Any], *, threads: int = 1
    ) -> None:
        """Args:
            models: ONNX files with an input `head` and an output `brain` of the same shape.
            voxels: of the largest cube.
            providers: of ONNX Runtime. Where the first does not start, every question is refused.
            threads: cores for a network on a CPU.

        Raises:
            OSError: this system has no such sockets or memory.
        """
        os.close(os.memfd_create("ssclf"))
        self._paths = {path.name: path for path in models}
        self._providers, self._threads = list(providers), threads
        self._sessions: dict[str, Any] = {}
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._warned = False
        key = secrets.token_bytes(32)
        self._listener = Listener(None, "AF_UNIX", _BACKLOG, key)
        self.address = OwnerAddress(str(self._listener.address), key, voxels)
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> NetworkOwner:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody is let in or answered any more; a network that runs ends first."""
        self._closed.set()
        # the thread that waits for callers sees it with the next one, who does not wait to be let in
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as caller:
            caller.connect(self.address.path)
        self._listener.close()
        if self._turn.acquire(timeout=_END_S):
            self._sessions.clear()  # and with them their memory on the GPU
            self._turn.release()

    @property
    def loaded(self) -> list[str]:
        """Names of the networks that run here."""
        return [name for name, session in self._sessions.items() if session is not None]

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                caller: Any = self._listener.accept()
            except _GONE:  # a worker that was killed while it introduced itself
                self._closed.wait(_PAUSE_S)
                continue
            threading.Thread(target=self._serve, args=(caller,), name="caller", daemon=True).start()

    def _serve(self, caller: Connection[Any, Any]) -> None:
        """One worker's questions, as long as it lives."""
        with caller:
            try:
                given, answer = self._share(caller)
                while not self._closed.is_set():
                    question = json.loads(caller.recv_bytes(_LONGEST))
                    caller.send_bytes(json.dumps({"done": self._answer(question, given, answer)}).encode())
            except _GONE:
                return

    def _share(self, caller: Connection[Any, Any]) -> tuple[Cube, Cube]:
        """Memory that the caller sees, too: for the head, and for what the network says."""
        descriptor = os.memfd_create("ssclf")
        try:
            os.ftruncate(descriptor, _bytes(self.address))
            shared = _halves(descriptor, self.address)
            reduction.send_handle(caller, descriptor, os.getpid())
        finally:
            os.close(descriptor)
        return shared

    def _answer(self, question: Mapping[str, Any], given: Cube, answer: Cube) -> bool:
        """Whether the answer lies there; a worker that hears no does it by itself."""
        count = question["side"] ** 3
        shape = (1, 1, *[question["side"]] * 3)
        with self._turn:
            if self._closed.is_set():
                return False
            try:
                session = self._session(question["network"])
                if session is None:
                    return False
                # into the shared memory at once: a copy of 64 MB would take as long as a GPU's network
                binding = session.io_binding()
                binding.bind_cpu_input("head", given[:count].reshape(shape))
                binding.bind_output("brain", "cpu", 0, np.float32, shape, answer.ctypes.data)
                session.run_with_iobinding(binding)
            except Exception as exc:  # onnxruntime's exceptions share no public base; no memory left, mostly
                self._warn(exc)
                return False
        return True

    def _session(self, name: str) -> Any:
        """A network, None where the device does not start.

        Raises:
            SsclfError: it cannot be loaded.
        """
        if name not in self._sessions:
            session = open_session(self._paths[name], self._providers, self._threads)
            wanted = self._providers[0] if isinstance(self._providers[0], str) else self._providers[0][0]
            self._sessions[name] = session if session.get_providers()[0] == wanted else None
        return self._sessions[name]

    def _warn(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = str(exc) if isinstance(exc, SsclfError) else f"{type(exc).__name__}: {exc}"
            log.warning(
                "brain extraction on the GPU failed (%s); such heads are done by the worker processes, more slowly",
                " ".join(reason.split())[:300],
            )


class OwnedNetworks:
    """A worker's end: asks the owner, one cube after the other."""

    def __init__(self, address: OwnerAddress) -> None:
        self._address = address
        self._connection: Connection[Any, Any] | None = None
        self._shared: tuple[Cube, Cube] | None = None

    def ask(self, network: str, head: Cube) -> Cube | None:
        """What a network says.

        Args:
            network: its file's name.
            head: (S, S, S).

        Returns:
            (S, S, S), to be looked at before the next question, which writes over it. None: the owner cannot, or is
            gone.
        """
        try:
            if self._connection is None or self._shared is None:
                self._connect()
            assert self._connection is not None and self._shared is not None
            given, answer = (half[: head.size].reshape(head.shape) for half in self._shared)
            np.copyto(given, head)
            self._connection.send_bytes(json.dumps({"network": network, "side": len(head)}).encode())
            done: bool = json.loads(self._connection.recv_bytes(_LONGEST))["done"]
        except (*_GONE, RuntimeError):  # the last: of `recv_handle`, where no more files may be opened
            self._connection = None
            return None
        return answer if done else None

    def _connect(self) -> None:
        self._connection = connection = Client(self._address.path, "AF_UNIX", self._address.key)
        descriptor = reduction.recv_handle(connection)
        try:
            self._shared = _halves(descriptor, self._address)
        finally:
            os.close(descriptor)


def _bytes(address: OwnerAddress) -> int:
    return 2 * address.voxels * np.dtype(np.float32).itemsize


def _halves(descriptor: int, address: OwnerAddress) -> tuple[Cube, Cube]:
    both = np.frombuffer(mmap.mmap(descriptor, _bytes(address)), np.float32)
    return both[: address.voxels], both[address.voxels :]
