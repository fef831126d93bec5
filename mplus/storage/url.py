"""A url as a place, by ``fsspec``: S3, Google Cloud Storage, Azure, SFTP and others."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mplus.errors import MPlusError
from mplus.storage.place import Place, Sink, not_read


class Url(Place):
    """A folder behind an ``fsspec`` url. A network has no lock, so the user must ensure that there is one writer."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self._url, self._files, self._root = url.rstrip("/"), file_system, root

    def __str__(self) -> str:
        return self._url

    @property
    def parent(self) -> "Url":
        """The parent folder."""
        return Url(self._url.rpartition("/")[0], self._files, self._root.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The name in the parent folder."""
        return self._root.rpartition("/")[2]

    def is_file(self) -> bool:
        """Whether the url leads to a file, not a folder."""
        try:
            with _transport():
                return bool(self._files.isfile(self._root))
        except OSError as error:
            raise not_read(self, error) from error

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name; listed again at each call."""
        with _transport():
            self._files.invalidate_cache(self._root)
            try:
                entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {str(e["name"]).rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        """Read a file; only the parts that are read are fetched."""
        with _transport(), self._files.open(f"{self._root}/{name}", "rb") as file:
            yield file

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Download files, each in one piece."""
        with _transport():
            for name in names:
                self._files.get_file(f"{self._root}/{name}", str(folder / name))

    @contextmanager
    def put(self, name: str) -> Generator[Sink]:
        """Upload a file."""
        with _transport(), self._files.open(f"{self._root}/{name}", "wb") as file:
            yield file

    def exchange(self, name: str, content: bytes) -> None:
        """Upload a small file in one request, which object stores carry out in one step."""
        with _transport():
            self._files.pipe_file(f"{self._root}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove a file and ignore errors."""
        with suppress(Exception):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Make the folder; takes no lock."""
        with _transport():
            self._files.makedirs(self._root, exist_ok=True)
        yield


@contextmanager
def _transport() -> Generator[None]:
    """Turns the errors that the libraries of url file systems raise into ``OSError``."""
    try:
        yield
    except (OSError, MPlusError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
