"""A local folder as a place. Saves survive a killed process, a power cut or a full disk."""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mplus.errors import CorruptMemoryError, MemoryLockedError, MemoryReadError
from mplus.storage.place import Place, Sink, not_saved

LOCK = ".lock"
UNFINISHED = ".writing-"
PASSING = frozenset(
    getattr(errno, name)
    for name in ("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "EINTR", "ETIMEDOUT", "EAGAIN", "EBUSY")
    if hasattr(errno, name)
)
"""Errors of the machine, such as too many open files, not of the file that was to be opened."""


class Folder(Place):
    """A local folder: files are forced to disk, and one process at a time writes there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def parent(self) -> "Folder":
        """The parent folder."""
        return Folder(self.path.parent)

    @property
    def name(self) -> str:
        """The folder's name in its parent."""
        return self.path.name

    def make(self, *, mode: int = 0o700) -> None:
        """Make the folder, readable by the user only, and force its name to disk; an existing folder is unchanged."""
        missing = [path for path in (self.path, *self.path.parents) if not path.is_dir()]
        self.path.mkdir(parents=True, exist_ok=True, mode=mode)
        for path in missing:
            Folder(path).parent.sync()

    def sizes(self) -> dict[str, int]:
        """Bytes of every regular file; one that is removed meanwhile is left out."""
        found: dict[str, int] = {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            found[entry.name] = entry.stat(follow_symlinks=False).st_size
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def open(self, name: str) -> BinaryIO:
        """Read a regular file."""
        path = self.path / name
        try:
            return open_regular(path)
        except CorruptMemoryError as error:
            if is_present(path):
                raise
            raise FileNotFoundError(f"{path} is not there") from error

    @contextmanager
    def put(self, name: str) -> Generator[Sink]:
        """Write a file under a temporary name, force it to disk, and rename it in one step."""
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
        """A hard link, since files of a save never change; a copy if the file system has no hard links."""
        try:
            os.link(path, self.path / path.name)
        except OSError:
            super().add(path)

    def remove(self, name: str) -> None:
        """Remove a file. On Windows this fails while the file is open."""
        with suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Force the names of its files to disk. Errors of file systems that do not support this are ignored."""
        if os.name == "nt":
            return
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except PermissionError:
            return  # a folder that may be written to but not listed
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Lock the folder against other threads and processes. The lock ends with the process, even if it is killed."""
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
            for name in self.sizes():  # left by a killed process
                if name.startswith(UNFINISHED):
                    self.remove(name)
            yield
        finally:
            lock.release()

    @contextmanager
    def on_disk(self, sizes: Mapping[str, int]) -> Generator[Path]:
        """The folder itself."""
        self.check_sizes(sizes)
        yield self.path


def is_present(path: Path) -> bool:
    """Whether something is at a path. ``os.path.lexists`` takes any error for no, as of a disk that cannot be read.

    Raises:
        OSError: It cannot be told.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_regular(path: Path) -> bool:
    """Whether a file is at a path, and no link, folder, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it, and ignore errors. ``rmtree`` would wait for a pipe in its place."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)


def is_foreign(path: Path) -> bool:
    """Whether a folder belongs to another user of the machine."""
    return hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a link, folder or device in its place is refused as altered.

    Raises:
        CorruptMemoryError: The file is missing or is not a regular file.
        MemoryReadError: It could not be opened now, which says nothing of the file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno in PASSING:
            raise MemoryReadError(
                error.errno, f"{path}: could not be opened ({error.strerror}). It may be intact; try again"
            ) from error
        raise CorruptMemoryError(f"missing or not readable ({error.strerror}). Restore it.", path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CorruptMemoryError("not a regular file. Restore it from a copy.", path)
    return os.fdopen(handle, "rb")
