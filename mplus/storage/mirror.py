"""A saved memory in two places: fetched from a shared one, and published there if nobody else has saved meanwhile."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from mplus.storage.files import SAVE_TIMEOUT
from mplus.storage.folder import Folder, remove_folder
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, is_own_file
from mplus.storage.place import COPY_BYTES, Place

TRIES = 8
"""So often a memory is fetched anew that is saved while it is fetched."""

FilesOf = Callable[[bytes], Mapping[str, int] | None]
"""Bytes of the files by name that a manifest lists; None if it cannot be read, as without its key."""


class Base(NamedTuple):
    """A save that a change begins from.

    Attributes:
        manifest: Its manifest; None if nothing is saved.
        names: Its files.
    """

    manifest: bytes | None
    names: Collection[str] = ()


def fetched(shared: Place, local: Folder, files_of: FilesOf, *, anew: bool = False) -> Base:
    """Bring what is saved in a shared place into a local folder, which is then the same.

    Only files are fetched that the folder lacks, or has in another size than the manifest says. A folder whose save was
    never published, because its process was killed, becomes as the shared place is. Where the shared place itself lacks
    a file the folder lacks it too, unless it had it.

    Args:
        shared: The shared place.
        local: The folder; the caller holds its lock.
        files_of: Reads a manifest.
        anew: Fetch every file, since one that is as large as it should be is damaged.

    Returns:
        What is there now.

    Raises:
        OSError: The shared place cannot be reached, or the folder cannot be written to.
    """
    incomplete: bytes | None = None
    for _ in range(TRIES):
        text = shared.content(MANIFEST)
        if text is None:
            remove_folder(local.path)
            return Base(None)
        is_same, files = local.content(MANIFEST) == text, files_of(text)
        if is_same and not anew and (files is None or not _lacking(local, files)):
            return Base(text, _own(local) if files is None else files)
        files = _listed(shared) if files is None else files
        local.make()
        # Encrypted files of one name may differ in their bytes, so none of another save is trusted.
        is_trusted = not anew and (is_same or not is_sealed(text))
        needed = _lacking(local, files) if is_trusted else files
        is_whole = all([_is_copied(shared, local, name, nbytes) for name, nbytes in needed.items()])
        # Another save may have ended meanwhile, and have removed files of the one that is being fetched.
        if shared.content(MANIFEST) != text:
            continue
        if not is_whole and incomplete != text:
            incomplete = text  # once more, in case the storage was behind
            continue
        local.exchange(MANIFEST, text)
        local.sync()
        # What the shared place has by now may be of a later save.
        for name in _own(local).keys() - files.keys():
            local.remove(name)
        return Base(text, files)
    raise OSError(f"{shared}: was saved anew {TRIES} times while it was read")


def published(local: Folder, shared: Place, base: Base, files_of: FilesOf) -> Base:
    """Bring what is saved in a local folder into a shared place, in one step, if ``base`` is still what is there.

    Args:
        local: The folder; the caller holds its lock.
        shared: The shared place.
        base: The save that the folder's one was made from.
        files_of: Reads a manifest.

    Returns:
        What is there now.

    Raises:
        MemoryConflictError: Another writer has saved there meanwhile; what it saved is intact.
        MemoryLockedError: Another writer is saving there.
        OSError: The shared place cannot be written to; what was there is intact.
    """
    text = local.content(MANIFEST)
    if text is None:
        raise OSError(f"{local}: {MANIFEST} is gone")
    if text == base.manifest:
        return base
    files = files_of(text) or _own(local)
    with shared.lock(SAVE_TIMEOUT):
        if shared.content(MANIFEST) != base.manifest:
            raise shared.conflict()
        present = _own(shared)
        for name, nbytes in files.items():
            if name not in base.names or present.get(name) != nbytes:
                _copy(local, shared, name, nbytes)
        shared.exchange_if(MANIFEST, text, base.manifest)
        for name in present.keys() - files.keys():
            shared.remove(name)
    return Base(text, files)


def removed(shared: Place, doomed: bytes, before: Callable[[], object]) -> bool:
    """Remove a memory from a shared place, its manifest first.

    Args:
        shared: The shared place.
        doomed: What the manifest of the save that is to be there begins with.
        before: Called once it is known that this save is there, before anything of it is removed.

    Returns:
        Whether it is gone; not if another save is there, which is intact.

    Raises:
        MemoryLockedError: Another writer is saving there.
        OSError: The shared place cannot be reached.
    """
    with shared.lock(SAVE_TIMEOUT):
        present = shared.content(MANIFEST)
        if present is not None and not present.startswith(doomed):
            return False
        # Looked at first: a storage that does not list what is there would have its files left behind.
        names = {} if present is None else _listed(shared)
        before() if present is not None else None
        shared.remove(MANIFEST)
        if shared.content(MANIFEST) is not None:
            raise OSError(f"{shared}: {MANIFEST} could not be removed")
        for name in names.keys() | _own(shared).keys():
            shared.remove(name)
    return True


def _own(place: Place) -> dict[str, int]:
    """Bytes of a save's files by name, without its manifest."""
    return {name: nbytes for name, nbytes in place.sizes().items() if is_own_file(name)}


def _listed(place: Place) -> dict[str, int]:
    """Bytes by name of the files of a save that is known to be there.

    Raises:
        OSError: The listing has not even its manifest, so that it says nothing of the other files.
    """
    if MANIFEST not in (found := place.sizes()):
        raise OSError(f"{place}: {MANIFEST} is there, but is not listed")
    return {name: nbytes for name, nbytes in found.items() if is_own_file(name)}


def _lacking(place: Place, files: Mapping[str, int]) -> dict[str, int]:
    """Those of some files that a place does not have whole."""
    present = place.sizes()
    return {name: nbytes for name, nbytes in files.items() if present.get(name) != nbytes}


def _is_copied(source: Place, target: Place, name: str, nbytes: int) -> bool:
    """Copy a file; whether it was there whole. If it was not, the target stays as it is."""
    try:
        _copy(source, target, name, nbytes)
    except FileNotFoundError:
        return False
    return True


def _copy(source: Place, target: Place, name: str, nbytes: int) -> None:
    """Copy a file.

    Raises:
        FileNotFoundError: There is none of that size.
    """
    with source.open(name) as read, target.put(name) as written:
        copied = 0
        while part := read.read(COPY_BYTES):
            written.write(part)
            copied += len(part)
        if copied != nbytes:
            raise FileNotFoundError(f"{source}: {name} has {copied:,} bytes, expected {nbytes:,}")
