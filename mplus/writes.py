"""``Writes``: the half of ``MPlus`` that writes into memories."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mplus.generation.memories_read import check_belongs
from mplus.given import check_kind, check_number, listed
from mplus.memory.ledger import LedgerEntry
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState
from mplus.moments import Moments
from mplus.progress import Progress, followed
from mplus.read.warming import warm_ahead
from mplus.thread_teams import gives_back_team
from mplus.weights import Weights
from mplus.write.absorb import WriteReport
from mplus.write.chunks import TextLike
from mplus.write.writer import Names, Writer


class Writes:
    """Writes texts into memories, each of which changes when everything has been written."""

    def __init__(self, weights: Weights, tokenizer: Any, name: str) -> None:
        self.weights, self.tokenizer, self.name = weights, tokenizer, name
        self._writer = Writer(weights, tokenizer)

    @gives_back_team
    def write(
        self,
        memory: Memory,
        text: TextLike,
        *,
        source: Names = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        keep_text: bool = False,
        progress: bool | Progress | None = None,
        later: bool = False,
        at: Moments = None,
        dated: bool = False,
    ) -> WriteReport:
        """Write text into a memory.

        Long texts are cut into chunks at sentence ends where possible. A tail shorter than the memory's
        minimum chunk waits for more text of the same source; reads treat it as if it had been written.

        Args:
            memory: The memory to write into; changed only when everything has been written.
            text: One text, several, or token ids of one.
            source: Name under which this can be recalled, inspected and forgotten; for several texts also one for
                each, written in one go. Numbers and UUIDs count as their text. None: a name is made, "text-1", ….
            metadata: Data about the source, returned when it is recalled; for several texts also one for each.
            keep_text: Keep the text itself beside its latents, for ``search`` and ``Memory.sources``.
            progress: True shows a bar; a callback receives the text tokens written so far and in total; None: silent.
            later: Let texts with a source wait until anything of the memory is read, changed, copied or saved, or
                until there are enough for a pass through the model: many small writes then cost what one large does.
                The report counts only text tokens. Memories with an age limit or an embedder, and those that do not
                keep chunks of states, are written at once.
            at: When it was said: a datetime, a date, ISO 8601 text or Unix seconds, in UTC if it has no zone; for
                several texts also one for each. Reads choose by it (``since``, ``until``, ``as_of``), and exports keep
                it. Age limits go by when text was written. None: now.
            dated: Let the reader see the date: "On 3 March 2024:" is written before each text with a time.

        Raises:
            ValueError: Empty text, token ids out of range, an empty source name or one of another type, another number
                of names, metadata or times than of texts, something that is no time, or ``dated`` without ``at``.
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        if later and not progress:
            return self._writer.write_later(
                memory, text, source=source, metadata=metadata, keep_text=keep_text, at=at, dated=dated
            )
        with followed(progress, "writing", "tok") as told:
            (report,) = self._writer.write(
                [memory],
                [text],
                sources=[source],
                metadata=[metadata],
                keep_text=keep_text,
                progress=told,
                at=[at],
                dated=dated,
            )
        return report

    @gives_back_team
    def write_batch(
        self,
        memories: Sequence[Memory],
        texts: Sequence[TextLike],
        *,
        sources: Sequence[Names] | None = None,
        metadata: Mapping[str, Any] | None = None,
        keep_text: bool = False,
        progress: bool | Progress | None = None,
        at: Sequence[Moments] | None = None,
        dated: bool = False,
    ) -> list[WriteReport]:
        """Write into several memories at once, as ``write`` does into each.

        Their chunks go through the layers together: many short texts cost little more than one long one.

        Args:
            memories: The memories to write into, each at most once; changed only when everything has been written.
            texts: For each memory, what ``write`` takes.
            sources: For each memory, what ``write`` takes; None makes names.
            metadata: Metadata of all the sources.
            keep_text: Keep the texts beside their latents.
            progress: True shows a bar; a callback receives the text tokens written so far and in total; None: silent.
            at: For each memory, what ``write`` takes; None: now.
            dated: Let the reader see the date of each text with a time.

        Raises:
            ValueError: Different numbers of memories, texts, sources and times, a memory given twice, empty text, or
                token ids out of range.
            MemoryMismatchError: A memory belongs to another model.
        """
        memories, texts = listed("memories", memories), listed("texts", texts)
        names = [None] * len(memories) if sources is None else listed("sources", sources)
        times = [None] * len(memories) if at is None else _each_time(at)
        if not len(memories) == len(texts) == len(names) == len(times):
            raise ValueError(
                f"{len(memories)} memories, {len(texts)} texts, {len(names)} sources and {len(times)} times: expected "
                "one text, one source and one time per memory."
            )
        for memory in memories:
            check_belongs(memory, self.weights, self.name)
        if len(set(memories)) < len(memories):
            raise ValueError("A memory is given more than once: pass its texts as one list.")
        with followed(progress, "writing", "tok") as told:
            return self._writer.write(
                memories,
                texts,
                sources=names,
                metadata=[metadata] * len(memories),
                keep_text=keep_text,
                progress=told,
                at=times,
                dated=dated,
            )

    @gives_back_team
    def warm(self, memory: Memory, *, seconds: float | None = None) -> int:
        """Make keys and values of what a memory keeps as token ids, the newest first, so that reads find them made.

        For idle moments: an answer makes what it needs by itself. Does nothing for ``long_term_keep="latents"``.

        Args:
            memory: The memory.
            seconds: Stop after so many seconds; None: when ``long_term_latent_bytes`` are held, or all chunks are.

        Returns:
            How many text tokens were encoded.

        Raises:
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        check_number("seconds", seconds, "a number of seconds, 0 or more, or None", optional=True)
        end = None if seconds is None else time.monotonic() + seconds
        return warm_ahead(self.weights, memory.state, lambda: end is None or time.monotonic() < end)

    @gives_back_team
    def replay(self, memory: Memory, state: MemoryState, entry: LedgerEntry) -> MemoryState:
        """The state after an entry of a memory's ledger has been written again; the memory itself is unchanged.

        Raises:
            MemoryMismatchError: The memory belongs to another model.
        """
        check_belongs(memory, self.weights, self.name)
        check_kind("state", state, MemoryState, "a state of this memory")
        check_kind("entry", entry, LedgerEntry, "an entry of this memory's ledger")
        ((state, _),) = self._writer.written([memory], [state], [entry], None)
        return state


def _each_time(at: Sequence[Moments]) -> list[Moments]:
    """The times of the texts of each memory, once it is clear that a list of them was given."""
    if isinstance(at, str) or not isinstance(at, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"at={at!r:.60}: expected a list with what write takes for each memory.")
    return list(at)
