"""Memories by the name or folder that a command is given."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mplus import Memory, MemoryStore, MPlus


def user_store() -> "MemoryStore":
    """The memories that are kept for the user."""
    from mplus import MemoryStore
    from mplus.checkpoint.catalog import cache_root

    return MemoryStore(cache_root() / "memories")


def located(memory: str) -> "tuple[MemoryStore, str]":
    """The store and the name of a memory that is called by name or by folder."""
    from mplus import MemoryStore

    if "/" in memory:
        path = Path(memory).expanduser()
        return MemoryStore(path.parent), path.name
    return user_store(), memory


class opened:
    """The model and a memory by name or folder; saved at the end where it changed."""

    def __init__(self, memory: str, model: str) -> None:
        from mplus import MPlus

        store, name = located(memory)
        self._folder = store.path(name)
        self._model = MPlus.from_pretrained(model)
        self._context = store.open(name, self._model)

    def __enter__(self) -> "tuple[MPlus, Memory]":
        self._memory = self._context.__enter__()
        return self._model, self._memory

    def save(self) -> None:
        """Bring the memory to disk now."""
        self._memory.save(self._folder)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
