"""Saved memories behind ``fsspec`` urls: S3, Google Cloud Storage, Azure, SFTP and others.

A save uploads the files that are new and then ``memory.json``, which object stores exchange in one step. There
is no lock over a network: one writer at a time is up to the user.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError
from mplus.memory.memory import Memory
from mplus.memory.portable import export_memory, unpack_memory
from mplus.memory.saving import MemoryMaker, described, load_memory
from mplus.memory.state_files import FileSet
from mplus.storage.encryption import MemoryKey
from mplus.storage.folders import not_saved
from mplus.storage.manifest import MANIFEST, MAX_MANIFEST_BYTES, format_of, is_own_file, parse_manifest, sealed_manifest
from mplus.storage.shards import ShardSum


def is_url(place: str) -> bool:
    """Whether a place is a url and not a path."""
    return "://" in place or "::" in place


def local_path(place: str | Path) -> Path | None:
    """The local path that is meant, None where it is not local."""
    if isinstance(place, Path) or not is_url(place):
        return Path(place).expanduser()
    if place.startswith(("file://", "local://")):
        fs, path = _file_system(place)
        return Path(fs._strip_protocol(path))
    return None


def save_to_url(memory: Memory, url: str, *, key: MemoryKey | None = None) -> None:
    """Save behind a url; only files that are not there yet are uploaded.

    Raises:
        MemorySaveError: It cannot be written to; what was saved before is intact.
        ValueError: No file system for such urls is installed.
    """
    fs, root = _file_system(url)
    fs.makedirs(root, exist_ok=True)
    sizes = {_name(entry): entry["size"] for entry in fs.ls(root, detail=True) if entry["type"] == "file"}
    files = FileSet(_reusable(fs, root, sizes, key), key)
    manifest = described(memory, files)
    written: dict[str, ShardSum] = {}
    try:
        for name, new in files.new.items():
            with fs.open(f"{root}/{name}", "wb") as file:
                written[name] = new.write(file)
        text = sealed_manifest(manifest.model_copy(update={"files": files.kept | written}), key)
        fs.pipe_file(f"{root}/{MANIFEST}", text)
    except OSError as error:
        raise not_saved(url, error) from error
    for name in sizes:
        if is_own_file(name) and name not in files.kept and name not in written:
            fs.rm_file(f"{root}/{name}")


def load_from_url(url: str, model: MemoryMaker, *, key: MemoryKey | None = None) -> Memory:
    """Open what is saved behind a url, a folder or a portable file: it is fetched, and then read from local disk.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: It was altered, or is of a newer format.
        MemoryKeyError: It is encrypted with another key, or one is needed.
        MemoryMismatchError: It was made by another model.
        ValueError: No file system for such urls is installed.
    """
    fs, root = _file_system(url)
    with _fetched() as folder:
        if fs.isfile(root):
            fs.get_file(root, str(folder / "portable"))
            return load_from_file(folder / "portable", model, key=key)
        text = _manifest_text(fs, root, url)
        if format_of(text, Path(MANIFEST)) == 1:
            names = [_name(entry) for entry in fs.ls(root, detail=True)]
            expected: dict[str, int | None] = {name: None for name in names if is_own_file(name)}
        else:
            expected = {name: s.nbytes for name, s in parse_manifest(text, Path(MANIFEST), key).files.items()}
        for name, nbytes in expected.items():
            if nbytes is not None and fs.info(f"{root}/{name}")["size"] != nbytes:
                raise CorruptMemoryError(f"{url}: {name} is not the file that was saved. Restore it from a copy.")
            fs.get_file(f"{root}/{name}", str(folder / name))
        (folder / MANIFEST).write_bytes(text)
        return load_memory(folder, model, key=key)


def load_from_file(path: Path, model: MemoryMaker, *, key: MemoryKey | None = None) -> Memory:
    """Open a portable file.

    Raises:
        CorruptMemoryError: It is no portable memory, or was altered.
        MemoryKeyError: It is encrypted with another key, or one is needed.
        MemoryMismatchError: It was made by another model.
    """
    with _fetched() as folder:
        unpack_memory(path, folder / "memory")
        return load_memory(folder / "memory", model, key=key)


def export_to(memory: Memory, place: str | Path, *, key: MemoryKey | None = None) -> None:
    """Write a portable file to a path, atomically, or to a url.

    Raises:
        MemorySaveError: It cannot be written to.
        ValueError: It is a folder.
    """
    from mplus.storage.folders import put_file

    path = local_path(place)
    try:
        if path is None:
            fs, url = _file_system(str(place))
            with fs.open(url, "wb") as file:
                export_memory(memory, file, key=key)
        elif path.is_dir():
            raise ValueError(f"{str(place)!r} is a folder; expected the name of a file, such as 'alice.mplus'.")
        else:
            put_file(path.parent, path.name, lambda file: export_memory(memory, file, key=key))
    except OSError as error:
        raise not_saved(str(place), error) from error


class _fetched:
    """A folder for what is fetched. Files that are mapped outlive it; nothing is left on disk."""

    def __enter__(self) -> Path:
        self._folder = Path(tempfile.mkdtemp(prefix="mplus-"))
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{url!r}: {error}. Install the fsspec package for such urls, or use a local folder."
        ) from error
    return fs, path.rstrip("/")


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


def _manifest_text(fs: Any, root: str, url: str) -> bytes:
    path = f"{root}/{MANIFEST}"
    try:
        size = fs.info(path)["size"]
    except FileNotFoundError as error:
        raise MemoryNotFoundError(f"{url}: no saved memory. Expected a folder with {MANIFEST} in it.") from error
    if size > MAX_MANIFEST_BYTES:
        raise CorruptMemoryError(f"{url}: {MANIFEST} has {size:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read.")
    return fs.cat_file(path)


def _reusable(fs: Any, root: str, sizes: dict[str, int], key: MemoryKey | None) -> dict[str, ShardSum]:
    try:
        text = _manifest_text(fs, root, root)
        if format_of(text, Path(MANIFEST)) == 1:
            return {}
        known = parse_manifest(text, Path(MANIFEST), key).files
    except (MemoryNotFoundError, CorruptMemoryError, MemoryKeyError):
        return {}
    return {name: file for name, file in known.items() if sizes.get(name) == file.nbytes}
