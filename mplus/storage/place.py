"""A ``Place`` holds files: a folder, a zip file, or the folder behind an ``fsspec`` url.

A file is written completely or not at all, and never changes afterwards; only the manifest is replaced.
All writes happen inside ``lock``.
"""

import errno
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast, runtime_checkable

from mplus.errors import CorruptMemoryError, MemoryConflictError, MemoryReadError, MemorySaveError

COPY_BYTES = 2**22


@runtime_checkable
class Sink(Protocol):
    """An object that bytes can be written to: a file, an entry of an archive, an upload."""

    def write(self, data: Any, /) -> int:
        """Write bytes; returns their number."""
        ...


class Place(ABC):
    """Files by name. ``str`` of a place is its name in error messages.

    Every method except ``lock`` and ``remove`` raises ``OSError`` if the place cannot be reached.
    """

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file by its name; empty if the place does not exist yet."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Read a file; raises ``FileNotFoundError`` if there is none of that name."""

    @abstractmethod
    def put(self, name: str) -> AbstractContextManager[Sink]:
        """Write a file. It exists once the block has ended without an error."""

    def exchange(self, name: str, content: bytes) -> None:
        """Replace a file in a single step; readers find the old or the new content."""
        with self.put(name) as file:
            file.write(content)

    def exchange_if(self, name: str, content: bytes, expected: bytes | None) -> None:
        """Replace a file in a single step if it still has the content ``expected``; None: if there is no such file.

        This is the only step of a save that readers see. Under a lock that everybody heeds, nobody comes between
        the comparison and the exchange; places without such a lock leave the comparison to the storage.

        Raises:
            MemoryConflictError: Another writer has replaced it.
        """
        if self.content(name) != expected:
            raise self.conflict()
        self.exchange(name, content)

    def content(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        try:
            with self.open(name) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError, CorruptMemoryError):
            return None

    def conflict(self) -> MemoryConflictError:
        """The error of a writer that came second."""
        return MemoryConflictError(
            f"{self}: another writer saved this memory at the same time; what it saved is intact. Load the memory "
            "again and write into that, and let one machine write a memory at a time."
        )

    def orphans(self) -> Collection[str]:
        """Names of files that nobody can be writing now: those that no manifest names may be removed."""
        return self.sizes().keys()

    def add(self, path: Path) -> None:
        """Put a copy of a local file there under its own name."""
        with path.open("rb") as source, self.put(path.name) as file:
            shutil.copyfileobj(source, cast("IO[bytes]", file), COPY_BYTES)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file that is no longer needed. If that fails, a later save removes it."""

    def sync(self) -> None:
        """Force the names of all files to disk."""
        return  # most places need no extra step

    @abstractmethod
    def lock(self, timeout: float) -> AbstractContextManager[None]:
        """Hold the exclusive right to write to the place; makes the place if it does not exist.

        Raises:
            MemoryLockedError: The place is still locked elsewhere after ``timeout`` seconds.
            MemorySaveError: The place cannot be written to.
        """

    @contextmanager
    def on_disk(self, sizes: Mapping[str, int]) -> Generator[Path]:
        """A local folder with these files, for mapping them into memory. Mapped files stay readable after the block.

        Raises:
            CorruptMemoryError: A file to be fetched is missing, or of another size.
        """
        self.check_sizes(sizes)
        with tempfile.TemporaryDirectory(prefix="mplus-", ignore_cleanup_errors=True) as folder:
            self.fetch(sizes, Path(folder))
            yield Path(folder)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Check that all files are there and as large as was saved, before any of them is read.

        Raises:
            CorruptMemoryError: A file is missing, or of another size.
        """
        found = self.sizes()
        for name, nbytes in sizes.items():
            if found.get(name) != nbytes:
                raise CorruptMemoryError(
                    f"{name} has {found.get(name, 'no')} bytes, expected {nbytes}. Restore it from a copy.", self
                )

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Copy some files to a local folder."""
        for name in names:
            with self.open(name) as source, (folder / name).open("xb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)


_ADVICE = {
    errno.ENOENT: "Make its folder first",
    errno.ENOTDIR: "A file stands where a folder should be: remove it",
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Free space there",
    errno.EACCES: "Allow writing there",
    errno.EPERM: "Allow writing there",
    errno.EROFS: "Allow writing there",
}
"""What helps against the commonest errors of a file system."""


def not_saved(place: Place | Path, error: OSError) -> MemorySaveError:
    """A ``MemorySaveError`` that says what happened and what to do."""
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or errno.EIO, "Free space or allow writing there")
    return MemorySaveError(
        error.errno or errno.EIO,
        f"{place}: the memory was not saved ({reason}); what was saved there before is intact. {advice}, or save to "
        "another folder",
    )


def not_read(place: Place, error: OSError) -> MemoryReadError:
    """A ``MemoryReadError`` for a place that cannot be reached, or for too little room for the fetched files."""
    reason = error.strerror or str(error)
    return MemoryReadError(
        error.errno or errno.EIO, f"{place}: the memory could not be read ({reason}). Try again, or check access"
    )
