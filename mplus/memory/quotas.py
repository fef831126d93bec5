"""Limits in bytes on what a store keeps."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mplus.errors import MemoryLimitError
from mplus.memory.store_locks import POLL_SECONDS
from mplus.storage.folder import Folder, is_foreign

QUOTA_LOCK = ".quota.lock"


@dataclass(frozen=True)
class Quotas:
    """The limits of one store.

    Attributes:
        root: Its folder.
        max_memory_bytes: Most bytes of one saved memory; None for no limit.
        max_total_bytes: Most bytes of all of them.
    """

    root: Path
    max_memory_bytes: int | None
    max_total_bytes: int | None

    def held(self) -> AbstractContextManager[object]:
        """Hold the lock under which memories with a common quota are saved one by one; two at once could exceed it."""
        from filelock import FileLock

        if self.max_total_bytes is None:
            return nullcontext()
        return FileLock(str(self.root / QUOTA_LOCK), mode=0o600, poll_interval=POLL_SECONDS)

    def check(self, name: str, nbytes: int) -> None:
        """Check that a memory may have that size.

        Raises:
            MemoryLimitError: It would exceed a limit.
        """
        if self.max_memory_bytes is not None and nbytes > self.max_memory_bytes:
            raise MemoryLimitError(
                f"Memory {name!r} has {nbytes:,} bytes, more than max_memory_bytes={self.max_memory_bytes:,}. Forget "
                "sources, or raise the limit; the saved state is unchanged."
            )
        self.check_total(name, nbytes)

    def check_total(self, name: str, nbytes: int) -> None:
        """Check that all memories together may have their size if one has that many bytes.

        Raises:
            MemoryLimitError: They would exceed the limit.
        """
        if self.max_total_bytes is None:
            return
        total = nbytes + self._bytes_of_others(name)
        if total > self.max_total_bytes:
            raise MemoryLimitError(
                f"All memories would have {total:,} bytes, more than max_total_bytes={self.max_total_bytes:,}. Delete "
                "some, or raise the limit; the saved state is unchanged."
            )

    def _bytes_of_others(self, name: str) -> int:
        """Bytes of every other folder, even of one whose first save has not ended."""
        others = [path for path in self.root.iterdir() if path.name != name and not path.name.startswith(".")]
        return sum(_bytes_of(path) for path in others)


def _bytes_of(folder: Path) -> int:
    try:
        return sum(Folder(folder).sizes().values())
    except PermissionError:
        if is_foreign(folder):  # such as "lost+found" at the top of a disk
            return 0
        raise
