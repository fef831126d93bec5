"""``Writer``: writes given texts into memories."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from mplus.config import MemoryConfig
from mplus.ids import Id, id_text
from mplus.layouts.by_config import layout_of
from mplus.memory.forgetting import within_age_limits
from mplus.memory.ledger import LedgerEntry, WrittenText
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, chained
from mplus.memory.vectors import ChunkVectors
from mplus.metadata import checked_metadata
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
    ) -> list[WriteReport]:
        """Write one or several texts into each memory; memories change once everything has been written.

        Raises:
            ValueError: The model has no tokenizer; or empty text, token ids out of range, an empty source name, or
                another number of names or metadata than of texts.
        """
        if self._tokenizer is None:
            raise ValueError(
                "This model has no tokenizer, so it writes nothing. Put the files of the tokenizer into its folder "
                "(tokenizer.json, tokenizer_config.json) and load it again."
            )
        sources = [_as_texts(source) for source in sources]
        given = [tokenized(text, self._tokenizer, self._weights.backbone.vocabulary_size) for text in texts]
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
        self, memory: Memory, texts: TextLike, *, source: Names, metadata: Metadata, keep_text: bool
    ) -> WriteReport:
        """Have texts wait until something of the memory is asked for, or enough wait to fill a pass through the model.

        A memory whose content depends on when it is written, or whose embedder may fail, is written at once. Takes and
        raises what ``write`` does.
        """
        config, source = memory.config, _as_texts(source)
        names = [None] if source is None or isinstance(source, str) else list(source)
        is_named = isinstance(source, str) or None not in names
        packs = layout_of(config).writes_together and config.encoding == "states"
        if not (is_named and packs) or config.has_vectors or config.has_age_limit or self._tokenizer is None:
            (report,) = self.write(
                [memory], [texts], sources=[source], metadata=[metadata], keep_text=keep_text, progress=None
            )
            return report
        given, started = tokenized(texts, self._tokenizer, self._weights.backbone.vocabulary_size), time.perf_counter()
        entry = self._entry(memory, source, metadata, given, keep_text)

        def write(waited: LedgerEntry) -> None:
            ((state, _),) = self.written([memory], [memory.state], [waited], None)
            memory.commit(state)

        memory.wait(entry.texts, write, most=batch_tokens(self._weights))
        return WriteReport(sum(len(text.input_ids) for text in given), 0, 0, 0, time.perf_counter() - started)

    def _entry(
        self, memory: Memory, source: Names, metadata: Metadata, tokens: Sequence[TokenizedText], keep_text: bool
    ) -> LedgerEntry:
        names: list[Any] = [None] * len(tokens) if source is None else _each(source, len(tokens), "names")
        if None in names:
            names = named(memory.state, names)  # which writes what waits
        abouts = [checked_metadata(about) for about in _each(metadata or {}, len(tokens), "metadata")]
        written: list[WrittenText] = []
        for name, about, text in zip(names, abouts, tokens, strict=True):
            ids = torch.tensor(text.input_ids, dtype=torch.int32)
            kept = (text.original or self._tokenizer.decode(text.input_ids),) if keep_text else ()
            written.append(WrittenText(name, about, ids, tuple(text.joined_by), kept))
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
