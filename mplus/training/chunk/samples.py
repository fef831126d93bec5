"""What the read adapter is shown: questions with what recall brings, told facts, conversations, plain text.

Kinds of samples, drawn at random:

* ``passage``: a question about a passage among thousands; always answered: an adapter that has learnt to decline
  them declines twice as many as it should (docs/lab/training.md), and confidence says which not to trust;
* ``cloze``: a question made of a sentence of a passage by leaving its answer out and some of its words;
* ``persona``: a person's own facts, some of them changed later; also questions nobody can answer, which are declined;
* ``dialogue``: what was settled in one of many conversations;
* ``continue``: the next part of a text whose beginning is in memory;
* ``keep``: conversations and text beside a memory that has nothing to do with them, where the
  backbone's own behaviour is what is wanted;
* ``request``: the same for ordinary requests and what everybody knows, answered as the backbone does.
"""

import random
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from mplus.recall.late_interaction import LateInteraction
from mplus.training.ahead import in_parallel
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.default_data import DefaultData
from mplus.training.chunk.questions import Question
from mplus.training.chunk.sample import AsRead, Sample, encode_sample
from mplus.training.chunk.spans import span_question

DECLINED = "I don't know."
SHORT = "Answer in a few words."
LONGEST = 192
"""Most tokens of a conversation that is learnt from."""
MIXTURE = (
    ("passage", 0.40),
    ("cloze", 0.05),
    ("persona", 0.25),
    ("dialogue", 0.14),
    ("continue", 0.01),
    ("keep", 0.08),
    ("request", 0.07),
)
TUNING = (
    ("passage", 0.22),
    ("cloze", 0.08),
    ("persona", 0.32),
    ("dialogue", 0.22),
    ("continue", 0.01),
    ("keep", 0.08),
    ("request", 0.07),
)
"""The mixture for an adapter that reads passages already: more generated samples, which never run out."""
PLAIN, BRIEF = 0.5, 0.33
"""Questions as they are, answered in a sentence; with "Answer in a few words."; the rest are plain completion."""
UNKNOWN = 0.2
"""Share of the questions about a person that are about something never told."""
WIDENED, NEIGHBOURS = 0.6, (1, 2, 2, 3)
"""So many questions meet the best chunk with its neighbours on either side: what is around it is read as well."""
BUDGETS = (128, 192, 256, 256, 256)
"""Tokens recalled: mostly as many as the default model recalls."""
RECENT = (0, 64, 128, 128)
"""Tokens of short-term memory, likewise."""
OWN_RECENT = 0.25
"""So many questions of a person are asked while short-term memory is full of what that person said last."""


@dataclass
class Samples:
    """Draws training samples from a bank of encoded texts.

    Attributes:
        data: Every text, and what is asked about it.
        scorer: Recall as it will be at reading.
        layer: Whose states it scores.
        tuning: An adapter that reads already goes on: about passages it learns to answer among others as it does
            when it reads the right one alone.
        mixture: How often each kind is drawn; None: ``TUNING`` or ``MIXTURE``.
    """

    data: DefaultData
    scorer: LateInteraction
    layer: int
    tuning: bool = False
    mixture: Sequence[tuple[str, float]] | None = None
    _everything: BankRecall = field(init=False)
    _private: Tensor = field(init=False)

    def __post_init__(self) -> None:
        bank = self.bank = self.data.bank
        self._everything = BankRecall(bank, self.scorer, self.layer)
        private = {text for _, texts in self.data.people for text in texts}
        self._private = torch.tensor([owner in private for owner in bank.owner])
        self._public = [*self.data.passages, *self.data.conversations]
        self._relevance: dict[str, Tensor] = {}
        self._texts = {p: "".join(bank.texts[c] for c in bank.chunks_of[p]) for p in self.data.passages}

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples of the mixture."""
        mixture = self.mixture or (TUNING if self.tuning else MIXTURE)
        kinds = rng.choices([k for k, _ in mixture], [w for _, w in mixture], k=count)
        return [replace(getattr(self, f"_{kind}")(rng), kind=kind) for kind in kinds]

    def prepare(self, processes: int) -> None:
        """Score every question that may be asked, once for all, by several processes."""
        asked = [
            *self.data.questions,
            *self.data.dialogue_questions,
            *(q for questions, _ in self.data.people for q in questions),
        ]
        texts = list(dict.fromkeys([*(q.text for q in asked), *(text for text, _ in self.data.requests)]))
        missing = [text for text in texts if text not in self._relevance]
        scored = in_parallel(lambda text: self._everything.relevance(text).half().numpy(), missing, processes)
        self._relevance |= {text: torch.from_numpy(row) for text, row in zip(missing, scored, strict=True)}

    # --- kinds ------------------------------------------------------------------------------------

    def _passage(self, rng: random.Random) -> Sample:
        question = rng.choice(self.data.questions)
        sample = self._asked(rng, question, own=())
        if not self.tuning:
            return sample
        return replace(sample, clean=tuple(self.bank.chunks_in(question.passages)))

    def _cloze(self, rng: random.Random) -> Sample:
        passage = rng.choice(self.data.passages)
        question = span_question(rng, self._texts[passage], passage)
        return self._asked(rng, question, own=()) if question else self._cloze(rng)

    def _dialogue(self, rng: random.Random) -> Sample:
        return self._asked(rng, rng.choice(self.data.dialogue_questions), own=())

    def _persona(self, rng: random.Random) -> Sample:
        questions, texts = rng.choice(self.data.people)
        own = self.bank.chunks_in(texts)
        if rng.random() < UNKNOWN:
            kinds = {q.text for q in questions}
            others = [q for q in rng.choice(self.data.people)[0] if q.text not in kinds]
            if others:
                unknown = rng.choice(others)
                read = self._prefix(rng, unknown.text, self._recall(unknown.text, own, rng), own)
                return self._said(rng, read, unknown, known=False)
        return self._asked(rng, rng.choice(questions), own=own, wrong=0.03)

    def _continue(self, rng: random.Random) -> Sample:
        bank = self.bank
        text = rng.choice(rng.choice([self.data.passages, self.data.conversations or self.data.passages]))
        chunks = bank.chunks_of[text]
        if len(chunks) < 2:
            return self._continue(rng)
        at = rng.randrange(1, len(chunks))
        others = self.bank.some_chunks(rng, self._public, rng.choice([0, 128]))
        ids = bank.input_ids[chunks[at]]
        if len(ids) < 2:
            return self._continue(rng)
        return Sample((*others, *chunks[max(0, at - 6) : at]), tuple(ids), 1)

    def _keep(self, rng: random.Random) -> Sample:
        prefix = self.bank.some_chunks(rng, self._public, rng.choice([64, 256, 512]))
        if rng.random() < 0.35:
            chunk = rng.randrange(len(self.bank.input_ids))
            if len(self.bank.input_ids[chunk]) < 2:
                return self._keep(rng)
            return Sample(tuple(prefix), tuple(self.bank.input_ids[chunk]), 1, distil=True)
        chat = rng.choice(self.data.chats)
        turns = [n for n, m in enumerate(chat) if m["role"] == "assistant"]
        at = rng.choice(turns)
        begin = max(0, at - rng.choice([1, 1, 3]))
        history = chat[begin:at] if chat[begin]["role"] == "user" else chat[begin + 1 : at]
        if not history:
            return self._keep(rng)
        sample = encode_sample(self.bank.tokenizer, AsRead(prefix), history, chat[at]["content"], distil=True)
        return sample if len(sample.input_ids) <= LONGEST else self._keep(rng)

    def _request(self, rng: random.Random) -> Sample:
        asked, reply = rng.choice(self.data.requests)
        _, texts = rng.choice(self.data.people)
        own = self.bank.chunks_in(texts) if rng.random() < 0.5 else []
        read = self._prefix(rng, asked, self._recall(asked, own, rng), own)
        return encode_sample(self.bank.tokenizer, read, [{"role": "user", "content": asked}], reply, distil=True)

    # --- a question and what stands before it -----------------------------------------------------

    def _asked(self, rng: random.Random, question: Question, *, own: Sequence[int], wrong: float = 0.0) -> Sample:
        """A question whose answer is among what is read; for a share ``wrong`` it is not, and is declined."""
        bank = self.bank
        gold = bank.gold_chunks(question) or bank.chunks_in(question.passages)
        if rng.random() < wrong:
            spared = {*bank.chunks_in(question.passages), *gold}
            return self._unanswered(rng, question, self._recall(question.text, own, rng), own, spared)
        if not own and rng.random() < 0.3:
            # A memory of little more than the passage, most of which is then read.
            texts = [*question.passages, *rng.sample(list(self.data.passages), rng.choice([0, 0, 1, 2, 4]))]
            little = bank.chunks_in(texts)
            recalled = self._best(question.text, little, rng.choice(BUDGETS))
            if any(c in recalled for c in gold):
                return self._said(rng, self._prefix(rng, question.text, recalled, own), question, known=True)
        if rng.random() < 0.12:
            # What is asked about is recent: it stands whole in short-term memory.
            text = rng.choice(question.passages)
            recalled = [c for c in self._recall(question.text, own, rng) if c not in bank.chunks_of[text]]
            recent = [
                *self.bank.some_chunks(rng, self._public, 96),
                *bank.chunks_of[text],
                *self.bank.some_chunks(rng, self._public, 96),
            ]
            return self._said(rng, self._ordered(rng, question.text, recalled, own, recent), question, known=True)
        recalled = self._recall(question.text, own, rng)
        if not any(c in recalled for c in gold):
            if own and rng.random() < 0.25:
                return self._unanswered(rng, question, recalled, own, set(gold))
            recalled = [*self._needed(question, gold), *recalled[:-1]]
        elif len(question.passages) > 1:
            recalled = list(dict.fromkeys([*self._needed(question, gold), *recalled]))
        return self._said(rng, self._prefix(rng, question.text, recalled, own), question, known=True)

    def _unanswered(
        self, rng: random.Random, question: Question, recalled: Sequence[int], own: Sequence[int], spared: set[int]
    ) -> Sample:
        """A question that nothing which is read answers, declined."""
        spared = spared | {c for c in (*recalled, *own) if question.is_answered_in(self.bank.texts[c])}
        recalled = [c for c in recalled if c not in spared]
        return self._said(rng, self._prefix(rng, question.text, recalled, own, spared), question, known=False)

    def _needed(self, question: Question, gold: Sequence[int]) -> list[int]:
        if len(question.passages) > 1:  # said first and changed later: both are needed
            return self.bank.chunks_in(question.passages)
        # The same words may stand in several chunks; the one nearest the question is what answers it.
        return self._best(question.text, gold, 1)

    def _said(self, rng: random.Random, read: AsRead, question: Question, *, known: bool) -> Sample:
        style = rng.random()
        if style < PLAIN:
            reply = question.reply if known else DECLINED
            return encode_sample(self.bank.tokenizer, read, [{"role": "user", "content": question.text}], reply)
        reply = question.answers[0] if known else DECLINED
        if style < PLAIN + BRIEF:
            content = f"{question.text}\n{SHORT}" if rng.random() < 0.8 else f"{SHORT} {question.text}"
            return encode_sample(self.bank.tokenizer, read, [{"role": "user", "content": content}], reply)
        prompt = f"Question: {question.text}\nAnswer:"
        return encode_sample(self.bank.tokenizer, read, prompt, f" {reply}\n")

    def _recall(self, text: str, own: Sequence[int], rng: random.Random) -> list[int]:
        """Most relevant chunks, best first, of everything that is not another person's."""
        allowed = ~self._private
        if rng.random() < 0.5:  # In a smaller memory the best wrong chunk is less relevant.
            allowed &= torch.rand(len(allowed), generator=torch.Generator().manual_seed(rng.randrange(2**31))) < 0.1
        allowed[list(own)] = True
        budget = rng.choice(BUDGETS)
        chosen = self._best(text, allowed.nonzero().flatten(), budget)
        if own or not chosen or rng.random() > WIDENED:
            return chosen
        return self._everything.widened(chosen, rng.choice(NEIGHBOURS), budget)

    def _best(self, text: str, chunks: Sequence[int] | Tensor, budget: int) -> list[int]:
        """Of some chunks the most relevant ones that fit into a budget, at least one; best first."""
        among = torch.as_tensor(chunks)
        best_first = self._scores(text)[among].argsort(descending=True, stable=True)
        chosen: list[int] = []
        size = 0
        for chunk in among[best_first[:40]].tolist():
            size += len(self.bank.input_ids[chunk])
            if size > budget and chosen:
                break
            chosen.append(chunk)
        return chosen

    def _scores(self, text: str) -> Tensor:
        """How well every chunk matches a question, as recall will score it."""
        if text not in self._relevance:
            self._relevance[text] = self._everything.relevance(text).half()
        return self._relevance[text]

    def _prefix(
        self,
        rng: random.Random,
        text: str,
        recalled: Sequence[int],
        own: Sequence[int],
        spared: Collection[int] = (),
    ) -> AsRead:
        """Chunks recalled for a question and some recent ones, as a read lays them out."""
        recent = self.bank.some_chunks(rng, self._public, rng.choice(RECENT))
        if own and rng.random() < OWN_RECENT:
            filled = list(accumulate(len(self.bank.input_ids[c]) for c in reversed(own)))
            recent = list(own[len(own) - bisect_right(filled, max(RECENT)) :])
        return self._ordered(rng, text, recalled, own, [c for c in recent if c not in spared])

    def _ordered(
        self, rng: random.Random, text: str, recalled: Sequence[int], own: Sequence[int], recent: Sequence[int]
    ) -> AsRead:
        """As a read of a question lays chunks out: oldest first, but the best last, turned towards the answer.

        When what is recalled was written is not known: texts in a random order, own texts in theirs.
        """
        rank = {owner: rng.random() for owner in {self.bank.owner[c] for c in recalled}}
        mine = sorted(rank[self.bank.owner[c]] for c in set(own) & set(recalled))
        for chunk, place in zip(sorted(set(own) & set(recalled)), mine, strict=True):
            rank[self.bank.owner[chunk]] = place
        written = {c: rank[self.bank.owner[c]] for c in recalled}
        written |= {c: 1.0 + place for place, c in enumerate(recent)}
        return self._everything.as_read(text, written.keys(), written, self._scores(text).float())
