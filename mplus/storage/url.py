"""A url as a place, by ``fsspec``: S3, Google Cloud Storage, Azure, SFTP and others."""

from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from mplus.errors import MPlusError
from mplus.storage.lease import LEASE_SECONDS, Lease
from mplus.storage.place import Place, Sink, not_read

LEASE = ".lock"
ORPHAN_SECONDS = 86_400.0


class Url(Place):
    """A folder behind an ``fsspec`` url. A network has no lock: there are leases, and an exchange that compares."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self._url, self._files, self._root = url.rstrip("/"), file_system, root
        self._lease: Lease | None = None
        self.lease_seconds = LEASE_SECONDS
        """How long others are kept out when a writer dies."""

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
            with _transport():  # ``isfile`` says no whatever goes wrong
                return self._files.info(self._root)["type"] == "file"
        except (FileNotFoundError, PermissionError):  # S3 answers so if keys may not be listed
            return False
        except OSError as error:
            raise not_read(self, error) from error

    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name; listed again at each call. Empty also where the storage is behind."""
        try:
            with _transport():
                self._files.invalidate_cache(self._root)
                entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {str(e["name"]).rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}

    def folders(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What is known of every file in every folder in it, by their names."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        try:
            with _transport():
                self._files.invalidate_cache(self._root)
                entries: dict[str, dict[str, Any]] = self._files.find(self._root, maxdepth=2, detail=True)
        except FileNotFoundError:
            return {}
        for path, about in entries.items():
            folder, _, name = path.removeprefix(self._root).strip("/").partition("/")
            if name:
                found.setdefault(folder, {})[name] = about
        return found

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        """Read a file; only the parts that are read are fetched."""
        with _transport(), self._files.open(f"{self._root}/{name}", "rb") as file:
            yield cast("BinaryIO", _Reader(file))

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Download files, each in one piece."""
        with _transport():
            for name in names:
                self._files.get_file(f"{self._root}/{name}", str(folder / name))

    @contextmanager
    def put(self, name: str) -> Generator[Sink]:
        """Upload a file."""
        with _transport():
            if self._lease is not None:
                self._lease.renew()
            with self._files.open(f"{self._root}/{name}", "wb") as file:
                yield file

    def exchange(self, name: str, content: bytes) -> None:
        """Upload a small file in one request, which object stores carry out in one step."""
        with _transport():
            self._files.pipe_file(f"{self._root}/{name}", content)

    def exchange_if(self, name: str, content: bytes, expected: bytes | None) -> None:
        """Upload a small file if the present one still has the content ``expected``.

        S3 compares at the moment of the exchange (If-Match, If-None-Match). Elsewhere we compare just before, under
        the lease. What is there afterwards decides what an error meant: an answer may be lost on the way.
        """
        path = f"{self._root}/{name}"
        try:
            with _transport():
                conditions = self._conditions(path)
                if self.content(name) != expected:
                    raise self.conflict()
                self._files.pipe_file(path, content, **conditions) if conditions else self.exchange(name, content)
        except OSError as error:
            present = self.content(name)
            if present == content:
                return
            if present != expected:
                raise self.conflict() from error
            raise

    def _conditions(self, path: str) -> dict[str, str]:
        """What S3 compares: the tag of the present object, or that there is none; nothing for other file systems."""
        protocol = self._files.protocol
        if not {"s3", "s3a"} & ({protocol} if isinstance(protocol, str) else set(protocol)):
            return {}
        self._files.invalidate_cache(self._root)
        try:
            return {"IfMatch": str(self._files.info(path)["ETag"])}
        except FileNotFoundError:
            return {"IfNoneMatch": "*"}

    def content(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        try:
            with _transport():
                return self._files.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def orphans(self) -> Collection[str]:
        """Names of files that are a day older than the newest: a save takes less, and nobody is locked out for certain.

        Ages go by the clock of the storage; that of this machine may be years ahead.
        """
        with _transport():
            self._files.invalidate_cache(self._root)
            entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
        made = {str(e["name"]).rpartition("/")[2]: moment(e) for e in entries if e["type"] == "file"}
        newest = max((time for time in made.values() if time is not None), default=0.0)
        return [name for name, time in made.items() if time is not None and time < newest - ORPHAN_SECONDS]

    def remove(self, name: str) -> None:
        """Remove a file and ignore errors."""
        with suppress(Exception):
            self._files.rm_file(f"{self._root}/{name}")

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Make the folder, and hold a lease on it: a file that says until when nobody else writes.

        A lease keeps careful writers apart, and the exchange of the manifest finds out the others.
        """
        with _transport():
            self._files.makedirs(self._root, exist_ok=True)
        lease = Lease(self._files, f"{self._root}/{LEASE}", str(self), self.lease_seconds)
        try:
            with _transport():
                lease.take(timeout)
            self._lease = lease
            yield
        finally:
            self._lease = None
            with suppress(Exception):
                lease.give_back()


def moment(entry: Mapping[str, Any]) -> float | None:
    """Unix time when a file was made, as the file system tells it; None if it does not."""
    found = next((entry[name] for name in ("LastModified", "mtime", "updated", "created") if name in entry), None)
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    made = found.timestamp() if isinstance(found, datetime) else found
    return float(made) if isinstance(made, (int, float)) else None


class _Reader:
    """A file behind a url: what goes wrong while it is fetched is no error of what it holds."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Read bytes."""
        with _transport():
            return self._file.read(size)


@contextmanager
def _transport() -> Generator[None]:
    """Turns the errors that the libraries of url file systems raise into ``OSError``."""
    try:
        yield
    except FileNotFoundError as error:
        if (cause := error.__cause__) is not None and _is_no_answer(cause):
            raise OSError(f"{type(cause).__name__}: {cause}") from error
        raise
    except (OSError, MPlusError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _is_no_answer(cause: BaseException) -> bool:
    """Whether no server said that there is no file: ``fsspec`` takes any error of a web server for that."""
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return status not in (404, 410)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
