"""``Writer``: writes given texts into memories."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from typing import Any

import torch

from mplus.config import MemoryConfig
from mplus.ids import Id, id_text
from mplus.inert import encode_inert
from mplus.layouts.by_config import layout_of
from mplus.memory.forgetting import within_age_limits
from mplus.memory.ledger import LedgerEntry, WrittenText
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, chained
from mplus.memory.vectors import ChunkVectors
from mplus.metadata import checked_metadata
from mplus.moments import Moments, heading_of, seconds_of
from mplus.progress import Progress
from mplus.sentences import SentenceEnds
from mplus.weights import Weights
from mplus.write.absorb import WriteReport, Writing, batch_tokens, write_together
from mplus.write.chunks import TextLike, TokenizedText, named, ready_chunks, tokenized
from mplus.write.vectors import completed

Names = Id | Sequence[Id | None] | None
"""The source of all texts of one memory, or one for each; None has a name made."""
Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""Metadata of all texts of one memory, or one mapping for each."""


class Writer:
    """Writes with one model."""

    def __init__(self, weights: Weights, tokenizer: Any) -> None:
        self._weights, self._tokenizer = weights, tokenizer
        self._ends = SentenceEnds(tokenizer) if tokenizer is not None else None

    def write(
        self,
        memories: Sequence[Memory],
        texts: Sequence[TextLike],
        *,
        sources: Sequence[Names],
        metadata: Sequence[Metadata],
        keep_text: bool,
        progress: Progress | None,
        at: Sequence[Moments] = (),
        dated: bool = False,
    ) -> list[WriteReport]:
        """Write one or several texts into each memory; memories change once everything has been written.

        Args:
            memories: The memories.
            texts: What to write into each.
            sources: Their names.
            metadata: Their metadata.
            keep_text: Whether the texts are kept.
            progress: Receives the text tokens written so far and in total.
            at: When the texts of each were said; empty: now.
            dated: Whether each text begins with the date on which it was said.

        Raises:
            ValueError: The model has no tokenizer; or empty text, token ids out of range, an empty source name, another
                number of names, metadata or times than of texts, or something that is no time.
        """
        if self._tokenizer is None:
            raise ValueError(
                "This model has no tokenizer, so it writes nothing. Put the files of the tokenizer into its folder "
                "(tokenizer.json, tokenizer_config.json) and load it again."
            )
        sources = [_as_texts(source) for source in sources]
        given = [
            self._tokenized(text, one, dated=dated) for text, one in zip(texts, at or [None] * len(texts), strict=True)
        ]
        started = time.perf_counter()
        with ExitStack() as stack:
            # Memories are always locked in the same order, so that two batches cannot deadlock.
            for memory in sorted(memories, key=id):
                stack.enter_context(memory.writing())
            entries = [
                self._entry(memory, source, about, tokens, keep_text)
                for memory, source, about, tokens in zip(memories, sources, metadata, given, strict=True)
            ]
            states = [memory.state for memory in memories]
            done = self.written(memories, states, entries, progress)
            for memory, (state, _) in zip(memories, done, strict=True):
                memory.commit(state)
        seconds = time.perf_counter() - started
        return [
            replace(report, text_tokens=sum(len(t.input_ids) for t in tokens), seconds=seconds)
            for (_, report), tokens in zip(done, given, strict=True)
        ]

    def write_later(
        self,
        memory: Memory,
        texts: TextLike,
        *,
        source: Names,
        metadata: Metadata,
        keep_text: bool,
        at: Moments = None,
        dated: bool = False,
    ) -> WriteReport:
        """Have texts wait until something of the memory is asked for, or enough wait to fill a pass through the model.

        A memory whose content depends on when it is written, or whose embedder may fail, is written at once. Takes and
        raises what ``write`` does.
        """
        config, source = memory.config, _as_texts(source)
        packs = layout_of(config).writes_together and config.encoding == "states"
        if not packs or config.has_vectors or config.has_age_limit or self._tokenizer is None:
            (report,) = self.write(
                [memory],
                [texts],
                sources=[source],
                metadata=[metadata],
                keep_text=keep_text,
                progress=None,
                at=[at],
                dated=dated,
            )
            return report
        given, started = self._tokenized(texts, at, dated=dated), time.perf_counter()

        def write(waited: LedgerEntry) -> None:
            ((state, _),) = self.written([memory], [memory.state], [waited], None)
            memory.commit(state)

        with memory.adding():
            entry = self._entry(memory, source, metadata, given, keep_text)
            memory.wait(entry.texts, write, most=batch_tokens(self._weights))
        return WriteReport(sum(len(text.input_ids) for text in given), 0, 0, 0, time.perf_counter() - started)

    def _tokenized(self, texts: TextLike, at: Moments, *, dated: bool) -> list[TokenizedText]:
        """Texts as token ids, each with when it was said, and beginning with the date if it is ``dated``."""
        given = tokenized(texts, self._tokenizer, self._weights.backbone.vocabulary_size)
        if at is None:
            if dated:
                raise ValueError("dated=True without at: expected when it was said, such as at='2024-03-03'.")
            return given
        moments: list[Any] = (
            [at] * len(given) if isinstance(at, str | float | int | date) else _each(at, len(given), "times")
        )
        found: list[TokenizedText] = []
        for text, moment in zip(given, moments, strict=True):
            if moment is None:
                found.append(text)
                continue
            ids = text.input_ids
            if dated:
                heading = heading_of(moment)
                whole = encode_inert(self._tokenizer, f"{heading} {text.original}")
                ids = whole if text.original else [*encode_inert(self._tokenizer, f"{heading}\n"), *ids]
            found.append(text._replace(input_ids=ids, at=seconds_of(moment, "at")))
        return found

    def _entry(
        self, memory: Memory, source: Names, metadata: Metadata, tokens: Sequence[TokenizedText], keep_text: bool
    ) -> LedgerEntry:
        names: list[Any] = [None] * len(tokens) if source is None else _each(source, len(tokens), "names")
        if None in names:
            state, waiting = memory.written_and_waiting()
            names = named(state, [*waiting, *names])[len(waiting) :]
        abouts = [checked_metadata(about) for about in _each(metadata or {}, len(tokens), "metadata")]
        written: list[WrittenText] = []
        for name, about, text in zip(names, abouts, tokens, strict=True):
            ids = torch.tensor(text.input_ids, dtype=torch.int32)
            kept = (text.original or self._tokenizer.decode(text.input_ids),) if keep_text else ()
            written.append(WrittenText(name, about, ids, tuple(text.joined_by), kept, text.at))
        return LedgerEntry(tuple(written), memory.now())

    def recalling(self, config: MemoryConfig, states: Sequence[MemoryState]) -> list[MemoryState]:
        """States of a memory whose layout differs in how it recalls only, with vectors for all chunks if it needs them.

        Raises:
            EmbedderError: The embedder failed.
            LedgerMissingError: There is no ledger to embed chunks from.
            MemoryMismatchError: The text of a chunk is not in the ledger.
        """
        vectors = [ChunkVectors()] * len(states)
        if config.has_vectors:
            assert self._ends is not None, "a model without a tokenizer embeds nothing"
            vectors = completed(self._weights, config, self._ends, states)
        changed: list[MemoryState] = []
        for state, made in zip(states, vectors, strict=True):
            tracks = tuple(replace(track, vectors=made) for track in state.tracks)
            digest = chained(state.digest, "recall", config.recall, made.embedder)
            changed.append(replace(state, tracks=tracks, digest=digest))
        return changed

    def written(
        self,
        memories: Sequence[Memory],
        states: Sequence[MemoryState],
        entries: Sequence[LedgerEntry],
        progress: Progress | None,
    ) -> list[tuple[MemoryState, WriteReport]]:
        """The states after each entry has been written at its time; the memories themselves are unchanged."""
        assert self._ends is not None, "a model without a tokenizer writes nothing"
        writings: list[Writing] = []
        for memory, state, entry in zip(memories, states, entries, strict=True):
            aged = within_age_limits(state, memory.config, entry.time)
            writings.append(Writing(memory, *ready_chunks(aged, memory.config, entry, self._ends)))
        written: list[tuple[MemoryState, WriteReport]] = []
        together = write_together(self._weights, writings, progress=progress)
        for memory, entry, (state, report) in zip(memories, entries, together, strict=True):
            if state.ledger is not None:
                state = replace(state, ledger=(*state.ledger, entry))
            written.append((within_age_limits(state, memory.config, entry.time), report))
        return written


def _as_texts(source: Names) -> str | list[str | None] | None:
    """Names of sources as text.

    Raises:
        ValueError: One is blank, or neither text, a number nor a UUID.
    """
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
        return [None if name is None else _as_text(name) for name in source]
    return None if source is None else _as_text(source)


def _as_text(name: Any) -> str:
    text = id_text(name, "source")
    if not text.strip():
        raise ValueError(f"source={text!r}: expected a name, or None to have one made.")
    return text


def _each(given: Any, count: int, what: str) -> list[Any]:
    """What is given for all texts or for each, as one for each."""
    if isinstance(given, str | Mapping):
        return [given] * count
    if not isinstance(given, Sequence):
        raise ValueError(f"{given!r:.60} ({type(given).__name__}) as {what}: expected one for all, or a list of them.")
    if len(given) != count:
        raise ValueError(f"{len(given)} {what} for {count} texts: expected one for each, or one for all.")
    return list(given)
