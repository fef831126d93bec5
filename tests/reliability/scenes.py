"""What is done to memories on disk while something goes wrong, and how to tell what is left."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mplus import KeyVault, Memory, MemoryKeyError, MemoryNotFoundError, MemoryStore, MPlus, UrlStore
from tests.forcing import without_waiting
from tests.reliability import bucket, states

without_waiting()

SCENES = (
    *("first save", "save", "encrypted save", "delete", "copy", "export", "restore", "backup"),
    *("load", "list", "verify", "url first save", "url save", "url delete", "url load"),
)
READS = ("load", "list", "verify", "url load")


@dataclass
class Scene:
    """One thing that is done in a folder of its own.

    Attributes:
        name: What is done.
        model: The model.
        old: Hash of what is found before; None if nothing is.
        new: Hash of what is found afterwards.
    """

    name: str
    model: MPlus
    old: str | None = None
    new: str | None = None
    _memories: dict[str, Memory] = field(default_factory=dict)

    def prepare(self, root: Path) -> None:
        """Make the folder as it is before."""
        time.time = lambda: 1_700_000_000.0  # writing the same twice gives the same, down to its time
        before, after = self.model.new_memory(), self.model.new_memory()
        for memory in (before, after):
            self.model.write(memory, states.text(1, 2), source="a", keep_text=True)
        self.model.write(after, states.text(2, 2), source="b")
        self._memories = {"old": before, "new": after}
        self.old = (
            None
            if self.name.removeprefix("url ") in ("first save", "copy", "export", "backup")
            else states.hash_of(before)
        )
        self.new = states.hash_of(before if self.name in ("copy", "export", "backup", *READS) else after)
        if self.name.endswith("delete"):
            self.new = None
        root.mkdir(mode=0o700)
        store = self.store(root)
        if not self.name.endswith("first save"):
            store.put("alice", before)
        if self.name == "restore":
            with store.open("alice", self.model) as opened:
                opened.adopt(after)
            store.backup(root / "backup")
            with store.open("alice", self.model) as opened:
                opened.adopt(before)

    def store(self, root: Path) -> MemoryStore:
        """The store, as a new process opens it."""
        vault = KeyVault(root / "keys") if self.name in ("encrypted save", "delete", "url delete") else None
        if self.name.startswith("url"):
            os.environ[bucket.ROOT] = str(root / "bucket")
            return UrlStore(bucket.URL, root / "store", vault=vault, max_resident_bytes=0)
        return MemoryStore(root / "store", vault=vault, max_resident_bytes=0)

    def act(self, root: Path) -> None:
        """Do it."""
        store = self.store(root)
        actions: dict[str, Callable[[], object]] = {
            "first save": lambda: store.put("alice", self._memories["new"]),
            "url first save": lambda: store.put("alice", self._memories["new"]),
            "delete": lambda: store.delete("alice"),
            "url delete": lambda: store.delete("alice"),
            "load": lambda: states.hash_of(store.load("alice", self.model)),
            "url load": lambda: states.hash_of(store.load("alice", self.model)),
            "list": lambda: [memory.name for memory in store.list()].remove("alice"),
            "verify": lambda: store.verify("alice"),
            "copy": lambda: store.copy("alice", "bob"),
            "export": lambda: store.load("alice", self.model).export(root / "alice.mplus"),
            "restore": lambda: store.restore(root / "backup", "alice", overwrite=True),
            "backup": lambda: store.backup(root / "backup"),
        }
        if self.name in actions:
            actions[self.name]()
            return
        with store.open("alice", self.model) as opened:
            opened.adopt(self._memories["new"])

    def found(self, root: Path) -> str | None:
        """Hash of what a process finds that comes afterwards; None if nothing is there.

        Raises:
            MPlusError: What is there cannot be opened.
        """
        store = self.store(root)
        try:
            if self.name == "export":
                return states.hash_of(Memory.load(root / "alice.mplus", self.model))
            if self.name == "backup":
                MemoryStore(root / "back").restore(root / "backup", "alice")
                return states.hash_of(MemoryStore(root / "back").load("alice", self.model))
            return states.hash_of(store.load("bob" if self.name == "copy" else "alice", self.model))
        except MemoryNotFoundError:
            keys = list((root / "keys").glob("alice.key")) if self.name.endswith("delete") else []
            assert not keys, "the memory is gone, and its key is not"
            return None
        except MemoryKeyError:
            # Its key is destroyed, and nothing is left of it but files that nobody can read.
            if not self.name.endswith("delete"):
                raise
            return None


def copied(source: Path, target: Path) -> Path:
    """A copy of a prepared folder."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))
