"""A local folder as a place: it survives a kill, a power cut or a full disk."""

import os
import secrets
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mplus.errors import CorruptMemoryError, MemoryLockedError
from mplus.storage.place import Place, Sink, not_saved

LOCK = ".lock"
UNFINISHED = ".writing-"


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
        missing = [path for path in (self.path, *self.path.parents) if not path.is_dir()]
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in missing:
            Folder(path).parent.sync()

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
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except PermissionError:
            return  # a folder in which one may write but not look
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
