"""Memories by the name or folder that a command is given."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mplus.given import path_of

if TYPE_CHECKING:
    from mplus import KeyVault, Memory, MemoryStore, MPlus


def user_store() -> "MemoryStore":
    """The memories that are kept for the user."""
    from mplus import MemoryStore
    from mplus.checkpoint.catalog import cache_root

    return MemoryStore(cache_root() / "memories")


def store_at(folder: str | None, vault: "KeyVault | None" = None) -> "MemoryStore":
    """The store in a folder, or the one that is kept for the user."""
    from mplus import MemoryStore
    from mplus.checkpoint.catalog import cache_root

    return MemoryStore(cache_root() / "memories" if folder is None else folder, vault=vault)


def located(memory: str) -> "tuple[MemoryStore, str]":
    """The store and the name of a memory that is called by name or by folder."""
    from mplus import MemoryStore

    if "/" in memory:
        path = path_of("memory", memory)
        return MemoryStore(path.parent), path.name
    return user_store(), memory


@contextmanager
def opened(memory: str, model: str, *, device: str = "auto", dtype: str = "auto") -> "Generator[tuple[MPlus, Memory]]":
    """The model and a memory by name or folder; saved at the end where it changed."""
    from mplus import MPlus

    store, name = located(memory)
    loaded = MPlus.from_pretrained(model, device=device, dtype=dtype)
    with store.open(name, loaded) as held:
        yield loaded, held
