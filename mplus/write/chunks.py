"""Turns given texts into chunks to be written: tokens, sources, cuts, and the waiting tail."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mplus.config import MemoryConfig
from mplus.encode import Chunk
from mplus.given import refused
from mplus.inert import encode_inert
from mplus.memory.ledger import LedgerEntry, WrittenText
from mplus.memory.state import MemoryState, SourceRecord, Tail
from mplus.sentences import SentenceEnds

TextLike = str | Sequence[str] | Sequence[int] | torch.Tensor


class TokenizedText(NamedTuple):
    """One text to be written, as token ids."""

    input_ids: list[int]
    joined_by: list[int]
    """Token ids that separate this text from a waiting tail of the same source."""
    original: str
    """The given text; empty if token ids were given."""
    at: float | None = None
    """Unix time at which it was said; None: now."""


def tokenized(text: TextLike, tokenizer: Any, vocabulary_size: int) -> list[TokenizedText]:
    """Texts as token ids.

    Raises:
        ValueError: The text is empty, token ids are out of range, or an item is not text.
    """
    if isinstance(text, torch.Tensor):
        text = [int(i) for i in text.flatten()]
    is_listed = isinstance(text, Iterable)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_listed or isinstance(text, bytes | bytearray | Mapping):
        raise refused("text", text, "text, several texts, or token ids of one")  # bytes would be taken for token ids
    if isinstance(text, str):
        text = [text]
    elif text and all(isinstance(item, int) and not isinstance(item, bool) for item in text):
        ids = [int(i) for i in text]
        if wrong := [i for i in ids if not 0 <= i < vocabulary_size]:
            raise ValueError(
                f"Token id {wrong[0]} is out of range: this model has ids 0 to {vocabulary_size - 1}. Use the "
                "model's own tokenizer."
            )
        return [TokenizedText(ids, [], "")]
    newline = encode_inert(tokenizer, "\n")
    found: list[TokenizedText] = []
    for item in text:
        if not isinstance(item, str):
            raise ValueError(f"text holds {type(item).__name__} {item!r:.60}: expected strings, or token ids only.")
        ids = encode_inert(tokenizer, item) if item.strip() else []
        if not ids:
            raise ValueError(f"text={item!r:.60}: nothing to write. Pass text that is not empty.")
        found.append(TokenizedText(ids, newline, item))
    if not found:
        raise ValueError("text=[]: nothing to write. Pass at least one text.")
    return found


def named(state: MemoryState, given: Sequence[str | None]) -> list[str]:
    """The given names of texts; None becomes "text-1", "text-2", …, the number of the source, skipping names in use."""
    sources = {record.name for record in state.sources}
    taken, count = sources | set(given), len(state.sources) + state.removed_rows
    names: list[str] = []
    for name in given:
        number = count + 1
        while name is None and f"text-{number}" in taken:
            number += 1
        names.append(f"text-{number}" if name is None else name)
        count += names[-1] not in sources
        sources.add(names[-1])
        taken.add(names[-1])
    return names


def ready_chunks(
    state: MemoryState, config: MemoryConfig, entry: LedgerEntry, ends: SentenceEnds
) -> tuple[MemoryState, list[Chunk]]:
    """Cut texts into chunks that continue what a memory already holds.

    Args:
        state: The memory's state.
        config: The memory's layout, for the length of chunks.
        entry: The texts to write.
        ends: Detects sentence ends in token ids.

    Returns:
        The state with the new sources and the waiting tail, and the chunks that are ready to be written into it.
    """
    cutting = _Cutting(state, config, ends, entry.time)
    for text in entry.texts:
        cutting.add(text)
    return cutting.state, cutting.chunks


class _Cutting:
    """Cuts the texts of one call, one after the other."""

    def __init__(self, state: MemoryState, config: MemoryConfig, ends: SentenceEnds, now: float) -> None:
        self.state = state
        self.chunks: list[Chunk] = []
        self._config, self._ends, self._now = config, ends, now
        self._last = state.context.sources[-1:].tolist() if state.context is not None else []
        """Source of the last token that has been cut into a chunk or written."""

    def add(self, text: WrittenText) -> None:
        """The chunks of a text that are ready; a rest that is too short waits in the tail of the state."""
        # Rows of sources are added at the end, so the table before tells what was known of this one and of the tail's.
        before, now = self.state.sources, self._now if text.at is None else text.at
        self.state, source = _with_source(self.state, text, self._now)
        tail, ids, since, latest = self.state.tail, text.input_ids.tolist(), self._now, text.at
        sources, is_dated = [source] * len(ids), text.at is not None
        if tail.input_ids and self._joins(tail, source, text):
            ids = [*tail.input_ids, *text.joined_by, *ids]
            sources = [*tail.sources, *([source] * len(text.joined_by)), *sources]
            since, is_dated = tail.since, is_dated or tail.is_dated
            said = max(tail.time, now)
            latest = said if is_dated or said != since else None
        elif tail.input_ids:
            if not before[tail.sources[0]].comes_before(tail.time, is_dated=tail.is_dated):
                self._last = []
            self._chunk(list(tail.input_ids), list(tail.sources), tail.since, tail.latest)
        if source < len(before) and not before[source].comes_before(now, is_dated=text.at is not None):
            self._last = []  # nothing may attend to what was said after it
        cuts = cut(
            ids,
            self._ends,
            chunk_tokens=self._config.chunk_tokens,
            minimum_chunk_tokens=self._config.minimum_chunk_tokens,
        )
        for start, stop in cuts.chunks:
            self._chunk(ids[start:stop], sources[start:stop], since, latest)
            since, latest = self._now, text.at
        start, stop = cuts.tail
        tail = Tail(tuple(ids[start:stop]), tuple(sources[start:stop]), since)
        self.state = replace(self.state, tail=replace(tail, latest=latest, is_dated=is_dated) if start < stop else tail)

    def _joins(self, tail: Tail, source: int, text: WrittenText) -> bool:
        """Whether a text may stand in one chunk with the waiting tail.

        Chunks of states never mix sources, so that each can be forgotten exactly, nor times that were given, so that
        reads as of a time see all that was said by then and nothing else.
        """
        if self._config.encoding == "adapter":
            return True
        if tail.sources[-1] != source:
            return False
        return tail.latest == text.at if tail.is_dated or text.at is not None else True

    def _chunk(self, ids: list[int], sources: list[int], since: float, latest: float | None) -> None:
        continues = self._last == sources[:1] and not self._config.encodes_apart
        self.chunks.append(Chunk(ids, sources, continues, since, latest=latest))
        self._last = sources[-1:]


def _with_source(state: MemoryState, text: WrittenText, now: float) -> tuple[MemoryState, int]:
    """The state with the text's source added or updated, and the source's row number."""
    number = state.source_number(text.source)
    if number is None:
        size, kept = len(text.input_ids), text.kept
        record = SourceRecord(
            text.source, dict(text.metadata), now, now, size, texts=kept, earliest=text.at, latest=text.at
        )
        return replace(state, sources=(*state.sources, record)), len(state.sources)
    known = state.sources[number]
    record = replace(
        known,
        metadata={**known.metadata, **text.metadata},
        last_written=now,
        text_tokens=known.text_tokens + len(text.input_ids),
        texts=known.texts + text.kept,
    )
    if text.at is not None or known.latest is not None:
        said, (first, last) = now if text.at is None else text.at, known.span
        record = replace(record, earliest=min(first, said), latest=max(last, said))
    sources = (*state.sources[:number], record, *state.sources[number + 1 :])
    return replace(state, sources=sources), number


# --- cuts -------------------------------------------------------------------------------------------


class Cuts(NamedTuple):
    """The cuts of a text, as (start, stop) pairs of token positions."""

    chunks: list[tuple[int, int]]
    tail: tuple[int, int]
    """The rest, too short for a chunk of its own; empty if start equals stop."""


def cut(ids: Sequence[int], ends: SentenceEnds, *, chunk_tokens: int, minimum_chunk_tokens: int) -> Cuts:
    """Cut a text into chunks of at most ``chunk_tokens`` tokens that end where sentences end.

    A chunk ends at the last paragraph end in its second half, else at the last sentence end there, else when it
    is full. No cut depends on the text after it, so a text written in pieces is cut as if it were written at once.
    """
    chunks: list[tuple[int, int]] = []
    start = 0
    while len(ids) - start > chunk_tokens:
        stop = _best_stop(ids, ends, start + max(chunk_tokens // 2, minimum_chunk_tokens), start + chunk_tokens)
        chunks.append((start, stop))
        start = stop
    if len(ids) - start >= minimum_chunk_tokens:
        chunks.append((start, len(ids)))
        start = len(ids)
    return Cuts(chunks, (start, len(ids)))


def _best_stop(ids: Sequence[int], ends: SentenceEnds, earliest: int, latest: int) -> int:
    best, strongest = latest, SentenceEnds.NOTHING
    for stop in range(latest, earliest - 1, -1):
        strength = ends.strength(ids[max(stop - 2, 0)], ids[stop - 1], ids[stop])
        if strength > strongest:
            best, strongest = stop, strength
            if strongest == SentenceEnds.PARAGRAPH:
                break
    return best
