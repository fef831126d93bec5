"""What can be done with named memories: the operations behind the API of memories and behind MCP."""

import secrets
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mplus import CorruptMemoryError, Memory, MemoryNotFoundError, MemoryStore, MPlus, Source, StoredMemory, turn_text
from mplus_integrations.latents import all_or_nothing
from mplus_integrations.server.problems import Problem, no_memory
from mplus_integrations.sources import MARK, refuse_marks
from mplus_integrations.turn_names import turn_names

SCRATCH = ".serve"
"""Folder of files that are being sent and received."""
Rows = list[dict[str, Any]]
LOCK_SECONDS = 30.0
"""How long an operation waits while another one writes the same memory."""


class Item(NamedTuple):
    """A text to write.

    Attributes:
        text: The text.
        source: The name under which it can be recalled and forgotten; None: a name is made.
        metadata: Data about it.
        at: When it was said, as ``MPlus.write`` takes it; None: now.
        dated: Whether it begins with the date for the reader.
    """

    text: str
    source: str | None
    metadata: Mapping[str, Any]
    at: str | float | None = None
    dated: bool = False

    def in_place_of(self, old: Mapping[str, Any]) -> "Item":
        """The same as the kind of source that it replaces: what says so stays.

        Raises:
            ValueError: It would be of another kind.
        """
        marks = {key: value for key, value in old.items() if key.startswith(MARK)}
        refuse_marks({k: v for k, v in self.metadata.items() if marks.get(k) != v}, "what is to be remembered")
        return self._replace(metadata={**self.metadata, **marks})


class Times(NamedTuple):
    """When what is read was said, as ``MPlus.generate`` takes it."""

    since: str | float | None = None
    until: str | float | None = None
    as_of: str | float | None = None


ANY_TIME = Times()


class Memories:
    """Named memories of one model.

    What changes a memory is on disk when a method returns; what fails leaves the memory as it was.

    Args:
        store: Where they are kept.
        model: The model that writes and reads them.
    """

    def __init__(self, store: MemoryStore, model: MPlus) -> None:
        self.store, self.model = store, model

    def exists(self, name: str) -> bool:
        """Whether there is a memory of that name."""
        try:
            self.store.load(name, self.model)
        except MemoryNotFoundError:
            return False
        return True

    def nbytes(self, name: str) -> int | None:
        """Bytes of a memory on disk; None if there is none."""
        stored = StoredMemory.of(self.store.path(name))
        return None if stored is None else stored.nbytes

    def list(self) -> Rows:
        """Every memory: its name, bytes on disk and times."""
        return [asdict(memory) for memory in self.store.list()]

    def create(self, name: str, *, copy_of: str | None = None) -> dict[str, Any]:
        """Make an empty memory, or a copy of another.

        Raises:
            Problem: The name is taken (409), or there is none to copy (404).
        """
        with self._as_new(name):
            if copy_of is None:
                self.store.put(name, self.model.new_memory())
            else:
                with named(copy_of):
                    self.store.copy(copy_of, name)
        return self.describe(name)

    def delete(self, name: str) -> None:
        """Remove a memory for good."""
        with named(name):
            self.store.delete(name, timeout=LOCK_SECONDS)

    def describe(self, name: str) -> dict[str, Any]:
        """Tokens and bytes by pool, ages, and how many sources there are."""
        memory = self._read(name)
        stats = asdict(memory.stats())
        for pool in ("short_term", "pending", "long_term"):
            stats[pool]["tokens"] = max(stats[pool]["tokens"], default=0)
        return {"name": name, **stats, "num_snapshots": len(memory.snapshots)}

    def sources(self, name: str, *, source: str | None = None, texts: bool = False, times: Times = ANY_TIME) -> Rows:
        """Its sources, or the one of a name.

        Args:
            name: The memory.
            source: The name of one source; None: all.
            texts: Whether the written texts are given too.
            times: When it was said.
        """
        held = self._read(name).sources(**times._asdict())
        found = [one for one in held if source is None or one.name == source]
        if source is not None and not found:
            raise _no_source(name, source)
        return [_described(one, texts=texts) for one in found]

    def search(
        self,
        names: Sequence[str],
        query: str,
        *,
        limit: int | None,
        where: Mapping[str, Any] | None,
        times: Times = ANY_TIME,
    ) -> Rows:
        """The sources that are found for a query, most relevant first; of several memories together."""
        memories = [self._read(name) for name in names]
        found = self.model.search(memories, query, limit=limit, where=where, **times._asdict())
        return [
            {
                "source": one.source,
                "memory": names[one.memory],
                "relevance": one.relevance,
                "metadata": dict(one.metadata),
                "texts": list(one.texts),
            }
            for one in found
        ]

    # --- changes ----------------------------------------------------------------------------------

    def write(self, name: str, items: Sequence[Item], *, keep_text: bool = True) -> dict[str, Any]:
        """Write texts, all or none of them; a memory that there is not is made.

        Returns:
            The report of the write, and the names of the sources.
        """
        with self.store.open(name, self.model, timeout=LOCK_SECONDS) as memory:
            return self._write(memory, items, keep_text=keep_text)

    def write_messages(
        self, name: str, messages: Sequence[Mapping[str, Any]], at: str | float | None = None, *, dated: bool = False
    ) -> dict[str, Any]:
        """Write the turns of a conversation, each under a name of its own; those in memory already stay."""
        names = turn_names(messages)
        turns = [Item(turn_text(m), n, {"role": m["role"]}, at, dated) for n, m in zip(names, messages, strict=True)]
        with self.store.open(name, self.model, timeout=LOCK_SECONDS, keep_empty=False) as memory:
            known = {source.name for source in memory.sources()}
            return self._write(memory, [one for one in turns if one.text and one.source not in known], keep_text=True)

    def replace(self, name: str, item: Item, *, keep_text: bool = True) -> dict[str, Any]:
        """Forget a source and write its new text in its place, at once."""
        with self._changing(name) as memory:
            if item.source is None or not _has(memory, item.source):
                raise _no_source(name, item.source)
            old = next(one for one in memory.sources() if one.name == item.source)
            was_pinned, item = old.pinned, item.in_place_of(old.metadata)
            memory.forget(old.name)
            report = self._write(memory, [item], keep_text=keep_text)
            if was_pinned:
                memory.pin(old.name)
            return report

    def forget(self, name: str, source: str, *, rebuild: bool = False) -> int:
        """Forget a source for good; returns how many memory tokens were removed.

        Args:
            name: The memory.
            source: The source.
            rebuild: Write everything after it once more, as if it had never been written.
        """
        with self._changing(name) as memory:
            if not _has(memory, source):
                raise _no_source(name, source)
            return memory.forget(source, rebuild=self.model if rebuild else None)

    def pin(self, name: str, source: str, *, pinned: bool) -> None:
        """Keep a source regardless of ages and capacity, or no longer."""
        with self._changing(name) as memory:
            if not _has(memory, source):
                raise _no_source(name, source)
            memory.pin(source) if pinned else memory.unpin(source)

    # --- history ----------------------------------------------------------------------------------

    def snapshots(self, name: str) -> Rows:
        """Its snapshots, in the order in which they were made."""
        return [{"id": s.id, "label": s.label, "created": s.created} for s in self._read(name).snapshots]

    def snapshot(self, name: str, label: str) -> str:
        """Keep the present state; returns the snapshot's id."""
        with self._changing(name) as memory:
            return memory.snapshot(label)

    def discard(self, name: str, snapshot: str) -> None:
        """Drop a snapshot."""
        with self._changing(name) as memory:
            _check_snapshot(name, memory, snapshot)
            memory.discard(snapshot)

    def rollback(self, name: str, snapshot: str) -> dict[str, Any]:
        """Return to a snapshot; returns what became different, and a snapshot of what was before, to undo it."""
        with self._changing(name) as memory:
            _check_snapshot(name, memory, snapshot)
            undo = memory.snapshot("before rollback")
            memory.rollback(snapshot)
            return {"undo": undo, **_changes(memory.diff(undo))}

    def diff(self, name: str, before: str) -> dict[str, Any]:
        """The sources that were added, removed and changed since a snapshot."""
        memory = self._read(name)
        _check_snapshot(name, memory, before)
        return _changes(memory.diff(before))

    # --- files ------------------------------------------------------------------------------------

    def export(self, name: str, file: Path) -> None:
        """Write a memory into one portable file. It is not encrypted."""
        self._read(name).export(file)

    def import_(self, name: str, file: Path) -> dict[str, Any]:
        """Keep the memory in a portable file under a name.

        Raises:
            Problem: The name is taken (409), or the file is damaged or no memory (422).
        """
        try:
            imported = Memory.load(file, self.model)
        except (CorruptMemoryError, MemoryNotFoundError) as error:
            raise Problem(422, "not_a_memory", "What was sent is not a whole memory that mplus exported.") from error
        with self._as_new(name):
            self.store.put(name, imported)
        return self.describe(name)

    # --- inside -----------------------------------------------------------------------------------

    def _read(self, name: str) -> Memory:
        with named(name):
            return self.store.load(name, self.model)

    @contextmanager
    def _changing(self, name: str) -> Generator[Memory]:
        """A memory to change, all or nothing; there must be one."""
        self._read(name)
        with self.store.open(name, self.model, timeout=LOCK_SECONDS) as memory, all_or_nothing(memory) as fork:
            yield fork

    @contextmanager
    def _as_new(self, name: str) -> Generator[None]:
        if self.exists(name):
            raise _taken(name)
        try:
            yield
        except ValueError as error:
            if self.exists(name):  # made by another request meanwhile
                raise _taken(name) from error
            raise

    def _write(self, memory: Memory, items: Sequence[Item], *, keep_text: bool) -> dict[str, Any]:
        before = _sizes(memory.sources())
        report: dict[str, Any] = {"text_tokens": 0, "memory_tokens": 0, "evicted": 0, "consolidated": 0, "seconds": 0.0}
        if items:
            texts, names, metadata, at, dated = zip(*items, strict=True)
            report = asdict(
                self.model.write(
                    memory, texts, source=names, metadata=metadata, keep_text=keep_text, at=at, dated=any(dated)
                )
            )
        after = _sizes(memory.sources())
        return {**report, "sources": [name for name in after if after[name] != before.get(name)]}


@contextmanager
def named(name: str) -> Generator[None]:
    """Tells of a memory that is missing by its name alone; the store's own message lists others.

    Raises:
        Problem: It is missing (404).
    """
    try:
        yield
    except MemoryNotFoundError as error:
        raise no_memory(name) from error


def _sizes(sources: Iterable[Source]) -> dict[str, tuple[int, float]]:
    return {source.name: (source.text_tokens, source.last_written) for source in sources}


def _described(source: Source, *, texts: bool) -> dict[str, Any]:
    found = asdict(source) | {"tokens": source.tokens._asdict(), "metadata": dict(source.metadata)}
    found["texts"] = list(source.texts) if texts else None
    return found


def _has(memory: Memory, source: str) -> bool:
    return any(one.name == source for one in memory.sources())


def _changes(diff: Any) -> dict[str, Any]:
    return {name: list(names) for name, names in diff._asdict().items()}


def _check_snapshot(name: str, memory: Memory, snapshot: str) -> None:
    if all(one.id != snapshot for one in memory.snapshots):
        raise Problem(404, "snapshot_not_found", f"The memory {name!r} has no snapshot {snapshot!r:.40}.")


def _no_source(name: str, source: str | None) -> Problem:
    return Problem(404, "source_not_found", f"The memory {name!r} has no source {source!r:.80}.")


def _taken(name: str) -> Problem:
    return Problem(
        409, "memory_exists", f"There is a memory called {name!r} already. Delete it, or choose another name."
    )


def scratch_path(store: MemoryStore, ending: str) -> Path:
    """The path of a new file beside the memories, which nobody else can read. Whoever asks for it removes it."""
    folder = store.root / SCRATCH
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder / f"{secrets.token_hex(16)}{ending}"


def sweep_scratch(folder: Path) -> None:
    """Remove what a server left that was killed; a day old, so that another server's files stay."""
    for path in folder.glob("*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                path.unlink()
