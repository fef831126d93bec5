"""``TextReads``: reads of a memory as text, which stands in the prompt of the plain backbone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.config import MemoryConfig
from mplus.errors import LedgerMissingError
from mplus.forks import ProcessLock
from mplus.generation.prompt import Prompt, PromptLike, TemplateOptions, Tools
from mplus.generation.room import check_fits
from mplus.generation.told import encode_told, text_of
from mplus.memory.state import Lineage, MemoryState, Track
from mplus.memory.together import Together
from mplus.read.prefill import ReadRequest
from mplus.recall.texts import (
    FEW_PIECES,
    LATEST_SHARE,
    MANY_PIECES,
    PIECE_TOKENS,
    Piece,
    Wanted,
    as_recalled,
    drop_least,
    recall_pieces,
)
from mplus.weights import Weights

ANSWER_ROOM = 128
"""Recalled text leaves at least so many positions of the window to the answer, or an eighth of a small window."""
SMALL = 300_000_000
"""A model with fewer parameters in its layers is small: it reads few pieces, the best of them last."""


class TextReads:
    """Makes reads of memories as text.

    Args:
        weights: The model.
        tokenizer: Its tokenizer.
        prefers_text: Whether ``read="auto"`` stands for "text"; asked when a memory is first read.
    """

    def __init__(self, weights: Weights, tokenizer: Any, prefers_text: Callable[[], bool]) -> None:
        self._weights, self._tokenizer, self._prefers_text = weights, tokenizer, prefers_text
        self._without_pools: WeakKeyDictionary[Lineage, tuple[Track, ...]] = WeakKeyDictionary()
        self._guard = ProcessLock()

    def applies(self, read: Together, config: MemoryConfig) -> bool:
        """Whether memory is read as text. Where it is empty it never is: its answers are the backbone's.

        Raises:
            LedgerMissingError: Text was asked for, and one of several memories has no ledger.
        """
        if config.read == "latent" or not config.has_texts or not any(map(len, read.state.tracks)):
            return False
        if config.read == "auto":
            return read.has_ledgers and self._prefers_text()
        if not read.has_ledgers:
            raise LedgerMissingError(
                'read="text": one of these memories was made with ledger=False, so the text of its chunks was not '
                'kept. Read it alone, or make the first memory with read="latent".'
            )
        return True

    def request(
        self,
        read: Together,
        config: MemoryConfig,
        prompt: PromptLike,
        encoded: Prompt,
        *,
        tools: Tools | None,
        options: TemplateOptions,
        allowed: Int[Tensor, " n"] | None,
        otherwise: ReadRequest | None = None,
    ) -> ReadRequest:
        """A read of the plain backbone, with the text that answers in the prompt: as much as fits, the best first.

        Args:
            read: What is read.
            config: The layout of it.
            prompt: The prompt.
            encoded: The same as token ids, without any recalled text.
            tools: Tools described in the prompt.
            options: Variables of the chat template.
            allowed: Numbers of the sources that may be read; None for all.
            otherwise: What is read instead where the answer from memory would decline.

        Raises:
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
        """
        state, asked, backbone = read.state, len(encoded.input_ids), self._weights.backbone
        check_fits(asked, state, config, backbone)
        most = backbone.room(config.prefix_of(0)) - min(ANSWER_ROOM, backbone.window // 8)
        pieces = self._pieces(read, config, encoded, most - asked, allowed)
        whole = encoded
        while pieces:
            whole = encode_told(self._tokenizer, prompt, self._text_of(pieces), tools, options)
            if len(whole.input_ids) <= most:
                break
            whole = encoded
            drop_least(pieces)
        if not pieces:  # nothing of it may be read, or fits: the question is asked of the backbone
            return ReadRequest(self._weights.empty_state(config), config, encoded.input_ids, encoded.query)
        bare = replace(state, tracks=self._no_pools(state, config))
        told = as_recalled(pieces, state.tracks[0].short_term.provenance.chunks)
        return ReadRequest(
            bare,
            config,
            whole.input_ids,
            whole.query,
            members=read.members,
            told=told,
            pieces=tuple(pieces),
            asked_ids=encoded.input_ids,
            otherwise=otherwise,
        )

    def _no_pools(self, state: MemoryState, config: MemoryConfig) -> tuple[Track, ...]:
        """Empty pools, the same for all versions of a memory.

        Buffers of reads are kept by pool: what a later prompt begins with, a conversation that goes on or the same text
        before another question, is not read again.
        """
        with self._guard:
            if state.lineage not in self._without_pools:
                self._without_pools[state.lineage] = self._weights.empty_state(config).tracks
            return self._without_pools[state.lineage]

    @computed_once
    def _reads_much(self) -> bool:
        """A large model does, and one whose adapter learnt to."""
        if self._weights.text_backbone is not None:
            return True
        return sum(parameter.numel() for parameter in self._weights.backbone.read_layers.parameters()) >= SMALL

    def _text_of(self, pieces: Sequence[Piece]) -> str:
        """What is told. A model that reads much of it finds it as it was written: what changed stands behind what was.

        A small model reads best what is near, so that it finds the best piece last.
        """
        if not self._reads_much:
            return text_of(self._tokenizer, pieces[::-1])
        return text_of(self._tokenizer, sorted(pieces, key=lambda piece: int(piece.provenance.chunks[0])))

    @torch.inference_mode()
    def _pieces(
        self, read: Together, config: MemoryConfig, asked: Prompt, room: int, allowed: Int[Tensor, " n"] | None
    ) -> list[Piece]:
        """What is recalled as text for a prompt, best first."""
        weights, state = self._weights, read.state
        ids = asked.input_ids[slice(*asked.query)]
        vector = weights.question_vector(ids, state, config)
        question = weights.question(ids, state.tracks[0].recall_layer, vector)
        tokens = min(config.recalled_tokens or config.short_term_tokens, room)
        wanted = Wanted(tokens, FEW_PIECES)
        if self._reads_much:
            wanted = Wanted(tokens, MANY_PIECES, min(PIECE_TOKENS, tokens // LATEST_SHARE))
        return recall_pieces(weights.scorers[config.recall], read, config, question, weights.words_of, wanted, allowed)
