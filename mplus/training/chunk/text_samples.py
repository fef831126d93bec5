"""What the read adapter is shown where there is plain text, and perhaps questions about some of it.

Kinds of samples, drawn at random:

* ``ask``: a question about a passage, with what recall brings for it out of everything; declined where the
  answer is not among it;
* ``continue``: the next part of a text whose beginning is in memory;
* ``repeat``: a chunk in memory, word for word, as in the published recipe;
* ``keep``: text beside a memory that has nothing to do with it, where the backbone's own behaviour is wanted;
* ``request``: the same for ordinary requests, answered as the backbone does.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mplus.inert import encode_inert
from mplus.recall.late_interaction import LateInteraction
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.questions import Question
from mplus.training.chunk.sample import AsRead, Sample, encode_sample

DECLINED = "I don't know."
SHORT = "Answer in a few words."
MIXTURE = (("ask", 0.5), ("continue", 0.2), ("repeat", 0.08), ("keep", 0.14), ("request", 0.08))
UNANSWERED = 0.12
"""Share of the questions whose answer is removed from what is read."""
RECALLED_TOKENS = (128, 192, 256, 256)
NEIGHBOURS = (0, 0, 1, 2)
RECENT_TOKENS = (0, 64, 128, 256)


@dataclass
class TextSamples:
    """Draws samples from a bank of encoded passages.

    Attributes:
        bank: Every text.
        scorer: Recall as it will be at reading.
        layer: Whose states it scores.
        questions: About texts of the bank.
        texts: Numbers of the texts that may be continued, repeated, and stand beside others.
        requests: Ordinary requests and the backbone's own replies; may be none.
    """

    bank: ChunkBank
    scorer: LateInteraction
    layer: int
    questions: Sequence[Question]
    texts: Sequence[int]
    requests: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        self._scores = BankRecall(self.bank, self.scorer, self.layer)
        self._continued = [t for t in self.texts if len(self.bank.chunks_of[t]) > 1]
        possible = {
            "ask": self.questions,
            "continue": self._continued,
            "repeat": self.texts,
            "keep": self.texts,
            "request": self.requests,
        }
        self._mixture = [(kind, weight) for kind, weight in MIXTURE if len(possible[kind])]

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples of the mixture."""
        kinds = rng.choices([k for k, _ in self._mixture], [w for _, w in self._mixture], k=count)
        return [replace(getattr(self, f"_{kind}")(rng), kind=kind) for kind in kinds]

    # --- kinds ------------------------------------------------------------------------------------

    def _ask(self, rng: random.Random) -> Sample:
        question = rng.choice(self.questions)
        gold = self.bank.gold_chunks(question)
        recalled = self._recall(question.text, rng)
        is_known = bool(gold) and rng.random() >= UNANSWERED
        if is_known and not set(gold) & set(recalled):
            recalled = [rng.choice(gold), *recalled[:-1]]
        if not is_known:
            recalled = [c for c in recalled if not question.is_answered_in(self.bank.texts[c])]
        answer, reply = (question.answers[0], question.reply) if is_known else (DECLINED, DECLINED)
        read = self._prefix(rng, question.text, recalled, without=question if not is_known else None)
        style = rng.random()
        if style < 0.45:
            return self._said(read, question.text, reply)
        if style < 0.85:
            return self._said(read, f"{question.text}\n{SHORT}", answer)
        return encode_sample(self.bank.tokenizer, read, f"Question: {question.text}\nAnswer:", f" {answer}\n")

    def _continue(self, rng: random.Random) -> Sample:
        chunks = self.bank.chunks_of[rng.choice(self._continued)]
        at = rng.randrange(1, len(chunks))
        ids = self._at_least_two(self.bank.input_ids[chunks[at]])
        others = self.bank.some_chunks(rng, self.texts, rng.choice((0, 128)))
        before = chunks[max(0, at - 6) : at]
        return Sample((*(c for c in others if c not in chunks), *before), ids, 1)

    def _repeat(self, rng: random.Random) -> Sample:
        chunk = rng.choice(self.bank.chunks_of[rng.choice(self.texts)])
        others = [c for c in self.bank.some_chunks(rng, self.texts, rng.choice((0, 64))) if c != chunk]
        before = encode_inert(self.bank.tokenizer, "Repeat: ")
        return Sample((*others, chunk), (*before, *self.bank.input_ids[chunk]), len(before))

    def _keep(self, rng: random.Random) -> Sample:
        text = rng.choice(self.texts)
        chunk = rng.choice(self.bank.chunks_of[text])
        others = self.bank.some_chunks(rng, self.texts, rng.choice((64, 256, 512)))
        others = [c for c in others if self.bank.owner[c] != text]
        return Sample(tuple(others), self._at_least_two(self.bank.input_ids[chunk]), 1, distil=True)

    def _request(self, rng: random.Random) -> Sample:
        asked, reply = rng.choice(self.requests)
        return self._said(self._prefix(rng, asked, self._recall(asked, rng)), asked, reply, distil=True)

    # --- what a sample is made of -----------------------------------------------------------------

    def _said(self, read: AsRead, asked: str, reply: str, *, distil: bool = False) -> Sample:
        return encode_sample(self.bank.tokenizer, read, [{"role": "user", "content": asked}], reply, distil=distil)

    @staticmethod
    def _at_least_two(ids: Sequence[int]) -> tuple[int, ...]:
        """A target of one token needs something before it."""
        return tuple(ids) if len(ids) > 1 else (*ids, *ids)

    def _recall(self, text: str, rng: random.Random) -> list[int]:
        """Most relevant chunks of the bank, or of a tenth of it, best first."""
        allowed = None
        if rng.random() < 0.5:  # In a smaller memory the best wrong chunk is less relevant.
            generator = torch.Generator().manual_seed(rng.randrange(2**31))
            allowed = torch.rand(len(self.bank.input_ids), generator=generator) < 0.1
        budget = rng.choice(RECALLED_TOKENS)
        chosen = self._scores.best(text, budget, allowed)
        reach = rng.choice(NEIGHBOURS)
        return self._scores.widened(chosen, reach, budget) if reach else chosen

    def _prefix(
        self, rng: random.Random, text: str, recalled: Sequence[int], without: Question | None = None
    ) -> AsRead:
        """Recalled chunks, had their texts been written in a random order, and some recent ones, as a read has them."""
        written = {owner: rng.random() for owner in {self.bank.owner[c] for c in recalled}}
        recent = self.bank.some_chunks(rng, self.texts, rng.choice(RECENT_TOKENS))
        if without is not None:
            recent = [c for c in recent if not without.is_answered_in(self.bank.texts[c])]
        when = {c: written[self.bank.owner[c]] for c in recalled}
        when |= {c: 1.0 + place for place, c in enumerate(recent) if c not in when}
        return self._scores.as_read(text, when.keys(), when, self._scores.relevance(text))
