"""A folder of files that others write, such as transformers: it gets its name when all of it is on disk."""

import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from mplus.storage.folder import UNFINISHED, Folder


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """Where to write a folder. When the block has ended, its files and its name are on disk.

    A new folder is written beside its place, as ".writing-…", and renamed in one step: whatever is killed, there is the
    whole folder or none. Into one that there is already files are written one by one, as transformers does, which
    removes those of the model that was there; killed meanwhile, it holds parts of both.
    """
    if folder.is_dir():
        yield folder
        sync_files(path for path in folder.rglob("*") if len(path.relative_to(folder).parts) <= 2)
        Folder(folder).sync()
        return
    beside = Folder(folder.parent)
    beside.make(mode=0o777)
    writing = folder.parent / f"{UNFINISHED}{secrets.token_hex(8)}"
    writing.mkdir()
    try:
        yield writing
        sync_tree(writing)
        writing.rename(folder)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    beside.sync()


def sync_tree(folder: Path) -> None:
    """Force all files of a folder to disk, with their names: a rename must not overtake what it names."""
    paths = [*folder.rglob("*"), folder]
    sync_files(paths)
    for path in paths:
        if path.is_dir():
            Folder(path).sync()


def sync_files(paths: Iterable[Path]) -> None:
    """Force files to disk; what is no regular file is passed over."""
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY  # Windows forces only what may be written
    for path in paths:
        if not path.is_file():
            continue
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
