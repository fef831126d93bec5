"""Decoding: answers prompts with memories, one token at a time, for a whole batch.

The loop stops a row as soon as it is cancelled, and yields text as soon as later tokens cannot change it.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.generation.row import Piece, Row
from mplus.generation.sampling import Chosen, Sampler, TextStream, choose
from mplus.read.decode import Reading
from mplus.read.prefill import Prefill, kind_of, prefill_steps
from mplus.thread_teams import give_back_team
from mplus.weights import Weights

JOINING_TOKENS = 512
"""Most prompt tokens that are read together before running rows get their next token."""


def decode(weights: Weights, tokenizer: Any, rows: Sequence[Row], stop_token_ids: frozenset[int]) -> Iterator[Piece]:
    """Answer all rows and yield text as it becomes certain; each row ends with its ``finish_reason`` set.

    Closing the iterator cancels unfinished rows; an error in any row ends all rows.
    """
    engine = Engine(weights, tokenizer, stop_token_ids)
    try:
        engine.add(rows)
        while engine.rows:
            yield from engine.step()
            for row in rows:
                if row.error is not None:
                    raise row.error
        for row in rows:
            row.complete()
    finally:
        for row in rows:
            row.finish_reason = row.finish_reason or "cancelled"
        give_back_team()


class Engine:
    """The running batches of one model.

    Rows are added at any time and join between steps; a step gives every row one more token. Rows with and
    without a prefix use different layers and are in separate batches.
    """

    def __init__(self, weights: Weights, tokenizer: Any, stop_token_ids: frozenset[int]) -> None:
        self._weights, self._tokenizer, self._stop_token_ids = weights, tokenizer, stop_token_ids
        self._batches: list[Batch] = []

    def anew(self) -> "Engine":
        """An engine of the same model without rows."""
        return Engine(self._weights, self._tokenizer, self._stop_token_ids)

    @property
    def rows(self) -> list[Row]:
        """Rows that are not finished."""
        return [row for batch in self._batches for row in batch.rows]

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows to the running batches."""
        for row in rows:
            batch = next((b for b in self._batches if b.takes(row)), None)
            if batch is None:
                batch = Batch(self._weights, self._tokenizer, self._stop_token_ids)
                self._batches.append(batch)
            batch.add(row)

    def step(self) -> Iterator[Piece]:
        """Compute one more token for every row, and one more block of a prompt that is being read."""
        away: list[Row] = []
        for batch in self._batches:
            yield from batch.step()
            away += batch.turned_away()
        self._batches = [batch for batch in self._batches if batch.rows]
        self.add(away)


class Joining(NamedTuple):
    """Rows whose prompts are being read."""

    rows: list[Row]
    steps: Generator[None, None, Prefill]


class RowDecoder:
    """Makes the tokens of one row, and their text."""

    def __init__(self, row: Row, tokenizer: Any, stop_token_ids: frozenset[int], device: torch.device) -> None:
        self.row, self.token = row, -1
        self.is_away = False
        """Whether the row has turned away from memory, and is answered elsewhere."""
        request = row.request
        asked = request.input_ids if request.asked_ids is None else request.asked_ids
        self._sampler = Sampler(row.params, list(asked), device)
        self._text = TextStream(tokenizer, row.params.stop)
        self._stop_token_ids = stop_token_ids | set(row.params.stop_token_ids)

    @property
    def generator(self) -> torch.Generator | None:
        """The row's source of randomness; None if it takes the likeliest token."""
        return self._sampler.generator

    def scores(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """What the next token is chosen from. An error ends only this row."""
        try:
            scores = logits
            for processor in self.row.processors:
                scores = processor(self.row.token_ids, scores)
            return self._sampler.scores(scores.to(logits.device).reshape(logits.shape), self.row.token_ids)
        except Exception as error:
            self.row.error = error
            return logits

    def take(self, chosen: Chosen) -> str:
        """Take the next token; returns text that is now certain. An error ends only this row."""
        try:
            return self._take(chosen)
        except Exception as error:
            self.row.error = error
            return ""

    def _take(self, chosen: Chosen) -> str:
        row, text = self.row, ""
        if chosen.token < 0:
            raise RuntimeError("the probabilities that a token is sampled from are not numbers, or all are 0")
        self.token = chosen.token
        if row.turns_away(self.token):
            row.turn_away()
            self.is_away = True
            return ""
        row.trace.note(chosen.log_probability, chosen.entropy, ends=self.token in self._stop_token_ids)
        if self.token in self._stop_token_ids:
            row.finish_reason = "stop"
        else:
            row.token_ids.append(self.token)
            text = self._text.push(self.token)
            if self._text.finished:
                row.finish_reason = "stop"
            elif len(row.token_ids) >= row.params.max_new_tokens:
                row.finish_reason = "length"
        if row.finish_reason is not None and not self._text.finished:
            text += self._text.finish()
        return row.said(text)


class Batch:
    """Rows that are answered together, each over its own memory."""

    def __init__(self, weights: Weights, tokenizer: Any, stop_token_ids: frozenset[int]) -> None:
        self._weights, self._tokenizer, self._stop_token_ids = weights, tokenizer, stop_token_ids
        self._waiting: deque[Row] = deque()
        self._joining: Joining | None = None
        self._decoders: list[RowDecoder] = []
        """One for each row of ``_reading``, in the same order."""
        self._reading: Reading | None = None
        self._away: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        """Rows that are not finished, including those whose prompts are still being read."""
        joining = self._joining.rows if self._joining is not None else []
        return [*(decoder.row for decoder in self._decoders if not decoder.is_away), *joining, *self._waiting]

    def turned_away(self) -> list[Row]:
        """Rows that turned away from memory in the last step; their places become free in the next one."""
        away, self._away = self._away, []
        return away

    def takes(self, row: Row) -> bool:
        """Whether a row uses the same layers as the rows of this batch."""
        mine = self.rows
        if not mine:
            return True
        kinds = {kind_of(self._weights, one.request) for one in (mine[0], row)}
        return self._weights.backbone.pads_batches and len(kinds) == 1

    def add(self, row: Row) -> None:
        """Add a row."""
        self._waiting.append(row)

    def step(self) -> Iterator[Piece]:
        """Compute one more token for every row, and one more block of a waiting prompt."""
        self._drop_finished()
        try:
            if self._reading is not None:
                tokens = [decoder.token for decoder in self._decoders]
                yield from self._decode(self._decoders, self._reading.decode(tokens))
            yield from self._read_on()
        except Exception as error:  # an error of the whole batch; errors of one row are caught where they arise
            for row in self.rows:
                row.error = row.error or error
            self._decoders, self._reading, self._joining = [], None, None
            self._waiting.clear()

    def _drop_finished(self) -> None:
        for place in reversed(range(len(self._decoders))):
            if self._decoders[place].is_away or self._decoders[place].row.has_ended():
                self._decoders[place] = self._decoders[-1]
                self._decoders.pop()
                if self._reading is not None and self._decoders:
                    self._reading.leave(place)
        if not self._decoders:
            self._reading = None

    def _decode(self, decoders: Sequence[RowDecoder], logits: Tensor) -> Iterator[Piece]:
        given = zip(decoders, logits, strict=True)
        scores = [row if decoder.row.has_ended() else decoder.scores(row) for decoder, row in given]
        begins = any(decoder.row.trace.first_entropy is None for decoder in decoders)
        generators = [decoder.generator for decoder in decoders]
        for decoder, chosen in zip(
            list(decoders), choose(logits, scores, generators, with_entropy=begins), strict=True
        ):
            if not decoder.row.has_ended() and (text := decoder.take(chosen)):
                yield Piece(decoder.row, text)
            if decoder.is_away:
                self._away.append(decoder.row)

    def _read_on(self) -> Iterator[Piece]:
        """Read the next block of the prompts that are joining; after the last block their rows join."""
        if self._joining is None:
            group = self._next_group()
            if not group:
                return
            requests = [row.request for row in group]
            self._joining = Joining(group, prefill_steps(self._weights, requests, beside=self._reading))
        rows, steps = self._joining
        try:
            with torch.inference_mode():
                next(steps)
        except StopIteration as done:
            yield from self._join(rows, done.value)
        except Exception as error:
            self._joining = None
            if len(rows) > 1:
                # Read the prompts one by one to find the one that fails.
                for row in reversed(rows):
                    row.is_read_alone = True
                    self._waiting.appendleft(row)
            else:
                rows[0].error = error

    def _next_group(self) -> list[Row]:
        """Waiting rows to read together, with few enough tokens that running rows do not wait long."""
        group: list[Row] = []
        longest = 0
        while self._waiting:
            row = self._waiting[0]
            longest = max(longest, len(row.request.input_ids))
            together = longest * (len(group) + 1) <= JOINING_TOKENS and not row.is_read_alone
            if group and not together:
                break
            self._waiting.popleft()
            if not row.has_ended():
                group.append(row)
            if not together:
                break
        return group

    def _join(self, rows: Sequence[Row], step: Prefill) -> Iterator[Piece]:
        decoders: list[RowDecoder] = []
        for place, row in enumerate(rows):
            row.take_read(step.reading, place)
            decoders.append(RowDecoder(row, self._tokenizer, self._stop_token_ids, step.logits.device))
        if self._reading is None:
            self._reading = step.reading
        else:
            self._reading.join(step.reading)
        self._decoders += decoders
        self._joining = None
        yield from self._decode(decoders, step.logits[:, -1])
