"""A ``Place`` holds files: a folder, a zip file, or whatever an ``fsspec`` url leads to.

A file is put there whole or not at all, and never changes afterwards; only the manifest is exchanged for
another. Whoever writes does so inside ``lock``.
"""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast, runtime_checkable

from mplus.errors import CorruptMemoryError, MemoryReadError, MemorySaveError

COPY_BYTES = 2**22


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

    def sync(self) -> None:
        """Force the names of all files to disk."""
        return  # most places do so on their own

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
            self.fetch(sizes, Path(folder))
            yield Path(folder)

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Copy some files to a local folder."""
        for name in names:
            with self.open(name) as source, (folder / name).open("xb") as file:
                shutil.copyfileobj(source, file, COPY_BYTES)


def not_saved(place: Place | Path, error: OSError) -> MemorySaveError:
    """The error that says what became of a save, and what to do."""
    reason = error.strerror or str(error)
    return MemorySaveError(
        error.errno,
        f"{place}: the memory was not saved ({reason}); what was saved there before is intact. Free space or allow "
        "writing there, or save to another folder",
    )


def not_read(place: Place, error: OSError) -> MemoryReadError:
    """The error of a place that cannot be reached, or of no room for what is fetched."""
    reason = error.strerror or str(error)
    return MemoryReadError(error.errno, f"{place}: the memory could not be read ({reason}). Try again, or check access")
