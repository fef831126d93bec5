"""What processes that were killed left in a store's folder, and its removal."""

import time
from contextlib import suppress
from pathlib import Path

from mplus.errors import MemoryLockedError, MemorySaveError
from mplus.memory.store_locks import StoreLocks
from mplus.storage.folder import UNFINISHED, is_regular, remove_folder

COPYING = ".copying-"
"""How the folder of a copy begins that is not whole yet; the name of the memory and a number follow."""
LEFT_SECONDS = 86_400.0
"""A file that is not whole after so long was left by a killed process; writing one takes far less."""


def sweep(root: Path, locks: StoreLocks) -> None:
    """Remove the leftovers of copies and notes that were killed; what is no folder or file as these are stays."""
    for path in root.glob(f"{COPYING}*-*"):
        name = path.name.removeprefix(COPYING).rpartition("-")[0]
        # If it is locked, another process is still copying.
        with suppress(MemoryLockedError, MemorySaveError), locks.held(name, 0.0):
            remove_folder(path)
    for path in root.glob(f"{UNFINISHED}*"):
        with suppress(FileNotFoundError):  # another process sweeps too
            if is_regular(path) and path.lstat().st_mtime < time.time() - LEFT_SECONDS:
                path.unlink()
