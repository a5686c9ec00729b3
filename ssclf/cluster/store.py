"""Folders on any storage that fsspec knows: disks that all nodes share, S3 and its kin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from ssclf.errors import DatasetError, MissingDependencyError, OutputError
from ssclf.io.discovery.scans import companions
from ssclf.io.files import whole_file
from ssclf.io.inside import stays_below


@dataclass(frozen=True)
class Entry:
    """One name in a folder. `stamp` changes when the content of the file does."""

    name: str
    is_folder: bool
    stamp: str


@dataclass(frozen=True)
class Store:
    """A folder; small enough to travel with every task.

    Attributes:
        url: an absolute path, or `scheme://…` without a slash at its end.
    """

    url: str

    @staticmethod
    def at(text: str) -> Store:
        """A path (made absolute: other nodes have another working directory) or a URL."""
        scheme, sign, rest = text.partition("://")
        if sign and scheme != "file":
            return Store(text.rstrip("/"))
        return Store(str(Path(rest if sign else text).absolute()))

    @property
    def local(self) -> Path | None:
        """Where it lies for programs that open files; None on a remote store."""
        return None if "://" in self.url else Path(self.url)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Store:
        return Store(self.url.rpartition("/")[0])

    def below(self, name: str) -> Store:
        """A folder in this one; a `name` that is absolute or a URL stands for itself."""
        if not name:
            return self
        return Store.at(name) if name.startswith("/") or "://" in name else Store(f"{self.url}/{name}")

    def check_inside(self, name: str) -> None:
        """A name that somebody wrote into this storage may not lead a node to its own disk, nor out of the folder that
        files are fetched to.

        Raises:
            DatasetError: it would.
        """
        scheme, sign, rest = _as_url(name).partition("://")
        own = self.url.partition("://")[0] if self.local is None else "file"
        if not stays_below(rest.lstrip("/") if sign else name) or (sign and scheme != own):
            raise DatasetError(
                f"{name}: expected a name below {self.url}, or a URL of the same storage, found one that leads "
                "elsewhere; it is not followed."
            )

    def _open(self, name: str = "") -> tuple[Any, str]:
        place = self.below(name)
        try:
            # a listing that is remembered does not show what other nodes have written since
            found: tuple[Any, str] = url_to_fs(place.url, use_listings_cache=False)
        except ImportError as exc:
            raise MissingDependencyError(
                f"{place.url.partition('://')[0]}://: this storage needs another package ({exc}); "
                'S3 comes with `pip install "ssclf[ray]"`.'
            ) from exc
        except ValueError as exc:
            raise DatasetError(f"{place.url}: expected a path or a URL that fsspec knows ({exc}).") from exc
        return found

    def kind(self, name: str = "") -> str:
        """ "folder", "file" or "" where there is nothing.

        Raises:
            DatasetError: the storage does not answer, or not to this user.
        """
        fs, path = self._open(name)
        with _answering(f"{self.below(name).url}"):
            try:
                return "folder" if fs.info(path)["type"] == "directory" else "file"
            except FileNotFoundError:
                return ""

    def stamp(self, name: str) -> str:
        """What tells one content of a file from another; "gone" where there is none."""
        fs, path = self._open(name)
        try:
            return _stamp(fs.info(path))
        except OSError:
            return "gone"

    def entries(self, folder: str = "") -> list[Entry]:
        """What lies directly in a folder, by name; empty where there is no such folder.

        Raises:
            DatasetError: it cannot be listed.
        """
        fs, path = self._open(folder)
        with _answering(self.below(folder).url):
            try:
                listed = fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        named = ((info["name"].rstrip("/").rpartition("/")[2], info) for info in listed)
        own = path.rstrip("/")
        return sorted(
            (
                Entry(name, info["type"] == "directory", _stamp(info))
                for name, info in named
                # an object store may list the folder itself, as an empty object
                if name not in ("", ".", "..") and info["name"].rstrip("/") != own
            ),
            key=lambda entry: entry.name,
        )

    def read(self, name: str, *, first: int | None = None) -> bytes:
        """A file, or its first bytes.

        Raises:
            FileNotFoundError: there is none.
            DatasetError: it cannot be read.
        """
        fs, path = self._open(name)
        with _answering(self.below(name).url):
            content: bytes = fs.cat_file(path, start=0, end=first) if first else fs.cat_file(path)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all; replaces what is there.

        Raises:
            OutputError: it cannot be written.
        """
        place = self.below(name)
        try:
            if place.local:
                place.local.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(place.local, binary=True) as file:
                    file.write(content)
            else:
                fs, path = self._open(name)
                fs.pipe_file(path, content)  # a single request: an object appears whole
        except OutputError:
            raise
        except Exception as exc:  # each storage has exceptions of its own
            why = getattr(exc, "strerror", None) or type(exc).__name__
            raise OutputError(f"{place.url}: cannot be written ({why}).") from exc

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it; nothing there is fine."""
        fs, path = self._open(name)
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)

    def fetch(self, name: str, folder: Path) -> Path:
        """Copy a file to the same place below a local folder, and what belongs to it (voxels of a header).

        Raises:
            FileNotFoundError: there is none.
            DatasetError: it cannot be read.
        """
        self.check_inside(name)
        target = folder / name
        for one in (name, *(str(PurePosixPath(name).with_name(n)) for n in companions(target.name))):
            fs, path = self._open(_as_url(one))
            here = folder / one
            here.parent.mkdir(parents=True, exist_ok=True)
            with _answering(self.below(_as_url(one)).url):
                try:
                    fs.get_file(path, str(here))
                except FileNotFoundError:
                    here.unlink(missing_ok=True)
                    if one == name:
                        raise
        return target

    def fetch_all(self, names: Sequence[str], folder: Path) -> None:
        """Copy files to the same places below a local folder, many at a time: a series is 200 requests.

        Raises:
            FileNotFoundError: one of them is gone.
            DatasetError: one cannot be read.
        """
        if not names:
            return
        for name in names:
            self.check_inside(name)
        there = [self._open(_as_url(name)) for name in names]
        here = [folder / name for name in names]
        for parent in {path.parent for path in here}:
            parent.mkdir(parents=True, exist_ok=True)
        with _answering(self.url):
            there[0][0].get([path for _, path in there], [str(path) for path in here])


def _as_url(name: str) -> str:
    """Paths fold the two slashes of a URL in a manifest's cell into one."""
    scheme, sign, rest = name.partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if sign and scheme.isalnum() else name


def _stamp(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return f"{info.get('size')} {changed}"


@contextlib.contextmanager
def _answering(url: str) -> Iterator[None]:
    """Every storage has exceptions of its own; what they say may hold keys, so only their names are told."""
    try:
        yield
    except FileNotFoundError:
        raise
    except DatasetError:
        raise
    except Exception as exc:
        why = getattr(exc, "strerror", None) or type(exc).__name__
        raise DatasetError(
            f"{url}: cannot be read ({why}); check the address, the credentials and the network of the nodes."
        ) from exc
