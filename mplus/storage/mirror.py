"""A saved memory in two places: fetched from a shared one, and published there if nobody else has saved meanwhile."""

import shutil
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from mplus.storage.files import SAVE_TIMEOUT
from mplus.storage.folder import Folder
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, is_own_file
from mplus.storage.place import COPY_BYTES, Place

TRIES = 8
"""So often a memory is fetched anew that is saved while it is fetched."""


class Base(NamedTuple):
    """A save that a change begins from.

    Attributes:
        manifest: Its manifest; None if nothing is saved.
        names: Its files.
    """

    manifest: bytes | None
    names: Collection[str] = ()


def fetched(shared: Place, local: Folder) -> Base:
    """Bring what is saved in a shared place into a local folder, which is then the same.

    Only files that the folder lacks are fetched. A folder whose save was never published, because its process was
    killed, becomes as the shared place is.

    Args:
        shared: The shared place.
        local: The folder; the caller holds its lock.

    Returns:
        What is there now.

    Raises:
        OSError: The shared place cannot be reached, or the folder cannot be written to.
    """
    for tried in range(TRIES):
        text = shared.content(MANIFEST)
        if text is None:
            shutil.rmtree(local.path, ignore_errors=True)
            return Base(None)
        if local.content(MANIFEST) == text:
            return Base(text, _own(local))
        local.make()
        try:
            # Encrypted files of one name may differ in their bytes, so none that were not published are trusted.
            _copy(shared, local, known={} if is_sealed(text) else _own(local))
        except FileNotFoundError:
            # Another save ended meanwhile, and removed files of the one that is being fetched.
            if tried == TRIES - 1 or shared.content(MANIFEST) == text:
                raise
            continue
        if shared.content(MANIFEST) != text:
            continue
        local.exchange(MANIFEST, text)
        local.sync()
        for name in _own(local).keys() - _own(shared).keys():
            local.remove(name)
        return Base(text, _own(local))
    raise OSError(f"{shared}: was saved anew {TRIES} times while it was read")


def published(local: Folder, shared: Place, base: Base) -> Base:
    """Bring what is saved in a local folder into a shared place, in one step, if ``base`` is still what is there.

    Args:
        local: The folder; the caller holds its lock.
        shared: The shared place.
        base: The save that the folder's one was made from.

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
    names = _own(local)
    with shared.lock(SAVE_TIMEOUT):
        if shared.content(MANIFEST) != base.manifest:
            raise shared.conflict()
        present = _own(shared)
        _copy(local, shared, known={name: nbytes for name, nbytes in present.items() if name in base.names})
        shared.exchange_if(MANIFEST, text, base.manifest)
        for name in present.keys() - names.keys():
            shared.remove(name)
    return Base(text, names)


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
        before() if present is not None else None
        shared.remove(MANIFEST)
        if shared.content(MANIFEST) is not None:
            raise OSError(f"{shared}: {MANIFEST} could not be removed")
        for name in _own(shared):
            shared.remove(name)
    return True


def _own(place: Place) -> dict[str, int]:
    """Bytes of a save's files by name, without its manifest."""
    return {name: nbytes for name, nbytes in place.sizes().items() if is_own_file(name)}


def _copy(source: Place, target: Place, known: Mapping[str, int]) -> None:
    """Copy the files of a save that the target does not have whole."""
    for name, nbytes in _own(source).items():
        if known.get(name) == nbytes:
            continue
        with source.open(name) as read, target.put(name) as written:
            while part := read.read(COPY_BYTES):
                written.write(part)
