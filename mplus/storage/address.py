"""Turns paths and urls that users give into places."""

from pathlib import Path

from mplus.errors import MemoryReadError
from mplus.given import path_of
from mplus.storage.folder import Folder
from mplus.storage.place import Place, not_read
from mplus.storage.url import Url
from mplus.storage.zip_file import Zip


def place_of(where: str | Path) -> Place:
    """The place of a path or url: a zip file if a file is there, else a folder (local or behind a url).

    Raises:
        ValueError: No file system for urls of this kind is installed.
        MemoryReadError: The url or the path cannot be reached.
    """
    place = folder_of(where)
    try:
        is_file = place.is_file() if isinstance(place, Url) else place.path.is_file()
    except OSError as error:
        raise not_read(place, error) from error
    return Zip(place) if is_file else place


def zip_of(where: str | Path) -> Zip:
    """The zip file of that name, which need not exist yet.

    Raises:
        ValueError: There is a folder, or no file system for such urls is installed.
        MemoryReadError: The path cannot be reached.
    """
    place = folder_of(where)
    try:
        is_folder = isinstance(place, Folder) and place.path.is_dir()
    except OSError as error:
        raise not_read(place, error) from error
    if is_folder:
        raise ValueError(f"{str(where)!r} is a folder; expected the name of a file, such as 'alice.mplus'.")
    return Zip(place)


def folder_of(where: str | Path) -> Folder | Url:
    """The folder of that path or url, which need not exist yet.

    Raises:
        ValueError: It is neither, or no file system for such urls is installed.
        MemoryReadError: The file system cannot be reached.
    """
    if not isinstance(where, str) or not ("://" in where or "::" in where):
        return Folder(path_of("place", where, instead="Give it as text."))
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        file_system, root = fsspec.core.url_to_fs(where)
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{where!r}: {error}. Install the fsspec package for such urls, or use a local folder."
        ) from error
    except Exception as error:  # whatever the library of that file system raises
        raise MemoryReadError(None, f"{where}: cannot be reached ({type(error).__name__}: {error})") from error
    root = root.rstrip("/")
    return Folder(Path(root)) if isinstance(file_system, LocalFileSystem) else Url(where, file_system, root)
