"""A folder that is written to by whole files only, by one process at a time, and survives a kill or a full disk."""

import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from mplus.errors import MemoryLockedError, MemorySaveError

Result = TypeVar("Result")
LOCK = ".lock"
UNFINISHED = ".writing-"


@runtime_checkable
class Sink(Protocol):
    """Whatever bytes can be written to: a file, an entry of an archive, an upload."""

    def write(self, data: Any, /) -> int:
        """Write bytes; how many there were."""
        ...


def make_private(folder: Path) -> None:
    """Make a folder that only the user can enter; one that is there stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def put_file(folder: Path, name: str, write: Callable[[Sink], Result]) -> Result:
    """Write a file beside its place, force it to disk, and put it there in one step."""
    path = folder / f"{UNFINISHED}{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        path.replace(folder / name)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return result


def sync_folder(folder: Path) -> None:
    """Force the names of a folder to disk; file systems that cannot do so do it on their own."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_file(path: Path) -> None:
    """Remove a file that nobody needs; where that fails (Windows: someone has it open), a later save will."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


@contextmanager
def sole_writer(folder: Path, *, timeout: float) -> Generator[None]:
    """Hold a folder against other writers, in this process or another; a kill lets go of it.

    Raises:
        MemoryLockedError: Someone else still had it after ``timeout`` seconds.
        MemorySaveError: It cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        make_private(folder)
        lock = FileLock(str(folder / LOCK), mode=0o600, poll_interval=0.01)
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise MemoryLockedError(
            f"{folder}: another save was still running after {timeout:g} s. Try again later."
        ) from error
    except OSError as error:
        raise not_saved(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def not_saved(folder: Path | str, error: OSError) -> MemorySaveError:
    """The error that says what became of a save, and what to do."""
    reason = error.strerror or str(error)
    return MemorySaveError(
        error.errno,
        f"{folder}: the memory was not saved ({reason}); what was saved there before is intact. Free space or allow "
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
