"""A ``Place`` holds files: a folder, a zip file, or whatever an ``fsspec`` url leads to.

A file is put there whole or not at all, and never changes afterwards; only the manifest is exchanged for
another. Whoever writes does so inside ``lock``.
"""

import os
import secrets
import shutil
import stat
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast, runtime_checkable

from mplus.errors import CorruptMemoryError, MemoryLockedError, MemorySaveError, MPlusError
from mplus.storage.names import MANIFEST, is_own_file

LOCK = ".lock"
UNFINISHED = ".writing-"
COPY_BYTES = 2**22
MAX_FILES = 2**20


@runtime_checkable
class Sink(Protocol):
    """Whatever bytes can be written to: a file, an entry of an archive, an upload."""

    def write(self, data: Any, /) -> int:
        """Write bytes; how many there were."""
        ...


class Place(ABC):
    """Files by name. ``str`` of a place is what error messages call it.

    Every method but ``lock`` and ``remove`` raises ``OSError`` where the place cannot be reached.
    """

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name; empty where there is no such place yet."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Read a file; raises ``FileNotFoundError`` where there is none."""

    @abstractmethod
    def put(self, name: str) -> AbstractContextManager[Sink]:
        """Write a file: it is there once the block has ended, and not at all if that failed."""

    def exchange(self, name: str, content: bytes) -> None:
        """Exchange one file for another in a single step; readers find the old one or the new one.

        The only step of a save that readers see, so a compare-and-swap belongs here.
        """
        with self.put(name) as file:
            file.write(content)

    def add(self, path: Path) -> None:
        """Put a copy of a local file there under its own name."""
        with path.open("rb") as source, self.put(path.name) as file:
            shutil.copyfileobj(source, cast("IO[bytes]", file), COPY_BYTES)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file that nobody needs; where that fails, a later save does it."""

    @abstractmethod
    def sync(self) -> None:
        """Force the names of all files to disk, where the place does not do so on its own."""

    @abstractmethod
    def lock(self, timeout: float) -> AbstractContextManager[None]:
        """Be the only one who writes there, and make the place if need be.

        Raises:
            MemoryLockedError: Someone else still wrote there after ``timeout`` seconds.
            MemorySaveError: It cannot be written to.
        """

    @contextmanager
    def on_disk(self, sizes: Mapping[str, int]) -> Generator[Path]:
        """A local folder with these files, to map them: mapped files outlive it.

        Raises:
            CorruptMemoryError: One that had to be fetched is missing, or of another size.
        """
        found = self.sizes()
        for name, nbytes in sizes.items():
            if found.get(name) != nbytes:
                raise CorruptMemoryError(
                    f"{name} has {found.get(name, 'no')} bytes, expected {nbytes}. Restore it from a copy.", self
                )
        with tempfile.TemporaryDirectory(prefix="mplus-", ignore_cleanup_errors=True) as folder:
            for name in sizes:
                self.fetch(name, Path(folder) / name)
            yield Path(folder)

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a local path."""
        with self.open(name) as source, path.open("xb") as file:
            shutil.copyfileobj(source, file, COPY_BYTES)


class Folder(Place):
    """A local folder: files are forced to disk, and one process at a time writes there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def parent(self) -> "Folder":
        """The folder that it is in."""
        return Folder(self.path.parent)

    @property
    def name(self) -> str:
        """Its name there."""
        return self.path.name

    def make(self) -> None:
        """Make it, for the user alone, and force its name to disk; one that is there stays as it is."""
        if not self.path.is_dir():
            self.parent.make()
            self.path.mkdir(exist_ok=True, mode=0o700)
            self.parent.sync()

    def sizes(self) -> dict[str, int]:
        """Bytes of every regular file."""
        try:
            with os.scandir(self.path) as entries:
                return {
                    e.name: e.stat(follow_symlinks=False).st_size for e in entries if e.is_file(follow_symlinks=False)
                }
        except FileNotFoundError:
            return {}

    def open(self, name: str) -> BinaryIO:
        """Read a regular file."""
        path = self.path / name
        if not os.path.lexists(path):
            raise FileNotFoundError(f"{path} is not there")
        return open_regular(path)

    @contextmanager
    def put(self, name: str) -> Generator[Sink]:
        """Write a file beside its place, force it to disk, and put it there in one step."""
        path = self.path / f"{UNFINISHED}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            path.replace(self.path / name)
        except BaseException:
            self.remove(path.name)
            raise

    def add(self, path: Path) -> None:
        """The same file under a second name: files of a save never change. A copy where that cannot be."""
        try:
            os.link(path, self.path / path.name)
        except OSError:
            super().add(path)

    def remove(self, name: str) -> None:
        """Remove a file; on Windows that fails while someone has it open."""
        with suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Force the names of its files to disk; file systems that cannot do so do it on their own."""
        if os.name == "nt":
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Hold it against other threads and processes; a kill lets go of it."""
        from filelock import FileLock, Timeout

        try:
            self.make()
            lock = FileLock(str(self.path / LOCK), mode=0o600, poll_interval=0.01)
            lock.acquire(timeout=timeout)
        except Timeout as error:
            raise MemoryLockedError(
                f"{self}: another save was still running after {timeout:g} s. Try again later."
            ) from error
        except OSError as error:
            raise not_saved(self, error) from error
        try:
            for name in self.sizes():  # left by whoever was killed
                if name.startswith(UNFINISHED):
                    self.remove(name)
            yield
        finally:
            lock.release()

    @contextmanager
    def on_disk(self, sizes: Mapping[str, int]) -> Generator[Path]:
        """The folder itself: whoever opens the files checks them."""
        yield self.path


class Url(Place):
    """What an ``fsspec`` url leads to. There is no lock over a network: one writer at a time is up to the user."""

    def __init__(self, url: str, file_system: Any, root: str) -> None:
        self._url, self._files, self._root = url.rstrip("/"), file_system, root

    def __str__(self) -> str:
        return self._url

    @property
    def parent(self) -> "Url":
        """The folder that it is in."""
        return Url(self._url.rpartition("/")[0], self._files, self._root.rpartition("/")[0])

    @property
    def name(self) -> str:
        """Its name there."""
        return self._root.rpartition("/")[2]

    def is_file(self) -> bool:
        """Whether it is a file, and no folder."""
        with _transport():
            return bool(self._files.isfile(self._root))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, listed anew."""
        with _transport():
            self._files.invalidate_cache(self._root)
            try:
                entries: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {str(e["name"]).rpartition("/")[2]: e["size"] for e in entries if e["type"] == "file"}

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        """Read a file; only what is read of it is fetched."""
        with _transport(), self._files.open(f"{self._root}/{name}", "rb") as file:
            yield file

    def fetch(self, name: str, path: Path) -> None:
        """Download a file."""
        with _transport():
            self._files.get_file(f"{self._root}/{name}", str(path))

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
        """Remove a file; whatever goes wrong."""
        with suppress(Exception):
            self._files.rm_file(f"{self._root}/{name}")

    def sync(self) -> None:
        """Nothing to do: an upload has ended once it is there."""

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Only make the folder."""
        with _transport():
            self._files.makedirs(self._root, exist_ok=True)
        yield


class Zip(Place):
    """An uncompressed zip file, in a folder or behind a url: to carry a memory elsewhere.

    It is written anew by every save. Any unpacking tool makes a folder of it that is a ``Place`` too.
    """

    def __init__(self, file: Folder | Url) -> None:
        self._file, self._folder, self._archive = file, file.parent, cast("zipfile.ZipFile | None", None)

    def __str__(self) -> str:
        return str(self._file)

    def sizes(self) -> dict[str, int]:
        """Bytes of every entry."""
        with self._reading() as archive:
            return {entry.filename: entry.file_size for entry in archive.infolist()}

    @contextmanager
    def open(self, name: str) -> Generator[BinaryIO]:
        """Read an entry."""
        with self._reading() as archive, self._sound():
            if name not in archive.NameToInfo:
                raise FileNotFoundError(f"{self} has no entry {name!r}")
            with archive.open(name) as stream:
                yield cast("BinaryIO", stream)

    @contextmanager
    def put(self, name: str) -> Generator[Sink]:
        """Write an entry."""
        assert self._archive is not None, "a zip file is written to inside its lock"
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o600 << 16
        with self._archive.open(entry, "w", force_zip64=True) as stream:
            yield stream

    def remove(self, name: str) -> None:
        """Nothing to remove: the file is written anew."""

    def sync(self) -> None:
        """Nothing to do before the whole file is there."""

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Write the file: it is there once the block has ended."""
        with self._folder.put(self._file.name) as file, zipfile.ZipFile(cast("IO[bytes]", file), "w") as archive:
            self._archive = archive
            try:
                yield
            finally:
                self._archive = None
        self._folder.sync()

    @contextmanager
    def on_disk(self, sizes: Mapping[str, int]) -> Generator[Path]:
        """A local folder with these entries."""
        with self._reading(), super().on_disk(sizes) as folder:
            yield folder

    @contextmanager
    def _reading(self) -> Generator[zipfile.ZipFile]:
        """The archive, opened once; or the one that is being written."""
        if self._archive is not None:
            yield self._archive
            return
        with self._folder.open(self._file.name) as file:
            with self._sound():
                archive = zipfile.ZipFile(file)
                self._check(archive.infolist(), file.seek(0, os.SEEK_END))
            self._archive = archive
            try:
                yield archive
            finally:
                self._archive = None

    def _check(self, entries: list[zipfile.ZipInfo], size: int) -> None:
        """Refuse what no save makes, before anything is unpacked: other names, compression, entries that overlap."""
        names = [entry.filename for entry in entries]
        if len(names) > MAX_FILES or len(set(names)) < len(names) or MANIFEST not in names:
            raise CorruptMemoryError(f"not a portable memory; it holds {names[:3]!r:.200}.", self)
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
            if not stored or not (entry.filename == MANIFEST or is_own_file(entry.filename)):
                raise CorruptMemoryError(f"{entry.filename!r:.80} is not as an export makes it.", self)
        if sum(entry.file_size for entry in entries) > size:
            raise CorruptMemoryError("its parts overlap.", self)

    @contextmanager
    def _sound(self) -> Generator[None]:
        try:
            yield
        # zipfile raises NotImplementedError at a compression that it does not know.
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
            raise CorruptMemoryError(f"not a portable memory, or altered ({error}). Export it again.", self) from error


# --- which place is meant -----------------------------------------------------------------------------


def place_of(where: str | Path) -> Place:
    """Where something is saved: a zip file where there is a file, else a folder, or what a url leads to.

    Raises:
        ValueError: No file system for such urls is installed.
    """
    place = folder_of(where)
    is_file = place.is_file() if isinstance(place, Url) else place.path.is_file()
    return Zip(place) if is_file else place


def zip_of(where: str | Path) -> Zip:
    """The zip file of that name, which need not be there yet.

    Raises:
        ValueError: There is a folder, or no file system for such urls is installed.
    """
    place = folder_of(where)
    if isinstance(place, Folder) and place.path.is_dir():
        raise ValueError(f"{str(where)!r} is a folder; expected the name of a file, such as 'alice.mplus'.")
    return Zip(place)


def folder_of(where: str | Path) -> Folder | Url:
    """The folder of that path or url, which need not be there yet.

    Raises:
        ValueError: No file system for such urls is installed.
    """
    if isinstance(where, Path) or not ("://" in where or "::" in where):
        return Folder(Path(where).expanduser())
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        file_system, root = fsspec.core.url_to_fs(where)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{where!r}: {error}. Install the fsspec package for such urls, or use a local folder."
        ) from error
    root = root.rstrip("/")
    return Folder(Path(root)) if isinstance(file_system, LocalFileSystem) else Url(where, file_system, root)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a link, folder or device in its place is an altered memory.

    Raises:
        CorruptMemoryError: It is missing or no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise CorruptMemoryError(f"missing or not readable ({error.strerror}). Restore it.", path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CorruptMemoryError("not a regular file. Restore it from a copy.", path)
    return os.fdopen(handle, "rb")


# --- errors -------------------------------------------------------------------------------------------


@contextmanager
def _transport() -> Generator[None]:
    """File systems behind urls raise errors of their own libraries: make ``OSError`` of them."""
    try:
        yield
    except (OSError, MPlusError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def not_saved(place: Place | Path, error: OSError) -> MemorySaveError:
    """The error that says what became of a save, and what to do."""
    reason = error.strerror or str(error)
    return MemorySaveError(
        error.errno,
        f"{place}: the memory was not saved ({reason}); what was saved there before is intact. Free space or allow "
        "writing there, or save to another folder",
    )


def not_opened(root: Path, name: str, error: OSError) -> MemorySaveError:
    """The error of a folder in which nothing can be locked, and so nothing be changed."""
    reason = error.strerror or str(error)
    return MemorySaveError(
        error.errno,
        f"{root}: memory {name!r} cannot be opened for writing there ({reason}). Free space or allow writing, or use "
        "MemoryStore.load to only read it",
    )
