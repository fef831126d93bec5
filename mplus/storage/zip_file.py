"""A zip file as a place: a memory in one file that can be moved or sent."""

import os
import zipfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from mplus.errors import CorruptMemoryError
from mplus.storage.folder import Folder
from mplus.storage.names import MANIFEST, MAX_FILES, is_own_file
from mplus.storage.place import Place, Sink
from mplus.storage.url import Url


class Zip(Place):
    """An uncompressed zip file, in a folder or behind a url.

    Every save writes the whole file again. Unpacked with any tool, it is a folder that can be loaded too.
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
        """Does nothing: the whole zip file is written again."""

    @contextmanager
    def lock(self, timeout: float) -> Generator[None]:
        """Write the zip file; it exists once the block has ended."""
        with self._folder.put(self._file.name) as file, zipfile.ZipFile(cast("IO[bytes]", file), "w") as archive:
            self._archive = archive
            try:
                yield
            finally:
                self._archive = None
        self._folder.sync()

    def fetch(self, names: Iterable[str], folder: Path) -> None:
        """Unpack entries into a folder; the archive is opened once for all."""
        with self._reading():
            super().fetch(names, folder)

    @contextmanager
    def _reading(self) -> Generator[zipfile.ZipFile]:
        """The archive, opened for reading; or the one that is being written."""
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
        """Refuse archives that no save writes, before unpacking: other names, compression, overlapping entries."""
        names = [entry.filename for entry in entries]
        if len(names) > MAX_FILES or len(set(names)) < len(names) or MANIFEST not in names:
            raise CorruptMemoryError(f"not a portable memory; it holds {names[:3]!r:.200}.", self)
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
            if not stored or not (entry.filename == MANIFEST or is_own_file(entry.filename)):
                raise CorruptMemoryError(f"{entry.filename!r:.80} is not an entry that an export writes.", self)
        if sum(entry.file_size for entry in entries) > size:
            raise CorruptMemoryError("its parts overlap.", self)

    @contextmanager
    def _sound(self) -> Generator[None]:
        try:
            yield
        # zipfile raises NotImplementedError for a compression that it does not know.
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
            if isinstance(error.__context__, OSError):  # zipfile takes a file that cannot be read for none of its own
                raise error.__context__ from error
            raise CorruptMemoryError(f"not a portable memory, or altered ({error}). Export it again.", self) from error
