"""Samples for a model that reads memory as text: what was told stands in the prompt, as recall brings it.

Kinds of samples, drawn at random, several of each text, which goes through the layers once for them:

* ``told``: questions about a conversation, a note or a document of our own corpus, one in four of what it does not say,
  which is declined;
* ``within``: the same, while the conversation, or its later part, stands in the prompt as turns;
* ``passage``: questions about a passage of another origin, a few of other passages', which are declined;
* ``request``: ordinary requests beside such a text, answered as the backbone answers them without it.

No text is encoded before, and nothing is recalled: a memory of the size of these texts is recalled whole, in the order
in which it was written. Longer ones lose messages that no question needs.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from mplus.inert import encode_inert
from mplus.training.chunk.broad import BroadRows
from mplus.training.chunk.questions import Question
from mplus.training.chunk.sample import TOGETHER, AsRead, Sample, encode_sample
from mplus.training.chunk.talk_samples import KIND_WEIGHTS, PLAIN_SHARE, SHORT, SYSTEMS, exchange, short_reply
from mplus.training.chunk.tellings import DECLINED, turn_text
from mplus.training.chunk.typed import typed
from mplus.training.talk import Item, Message, drawn
from mplus.training.talk.corpus import PLAIN_WRITERS
from mplus.training.talk.format import Question as Asked

MIXTURE = (("told", 0.66), ("within", 0.08), ("passage", 0.18), ("request", 0.08))
UNKNOWN = 0.18
"""So many questions about an item are of what it does not say."""
ABSENT = 0.4
"""So many of those are another item's questions rather than its own."""
UNKNOWN_PASSAGE = 0.15
SHORT_SHARE = 0.2
SYSTEM_SHARE = 0.15
NOTED = ("Noted.", "OK.", "Thanks, got it.", "All right.", "I see.")
"""What an assistant says to a last message that nobody of the corpus answers."""
ASKED_BEFORE = 0.3
"""So many conversations hold questions about them with their answers, as memory does when it was asked before."""
OTHERS = (0, 0, 0, 1, 2, 4, 8)
"""Texts of other items, which stand before or behind."""
TOKENS = 512
"""Most tokens of a text."""
LONGEST = 900
"""Most tokens of a prompt with its reply."""
MOST_TRIES = 100
"""Texts that are drawn for each sample that is wanted, before drawing is given up."""


class Line(NamedTuple):
    """A part of a text, which is left out whole or not at all.

    Attributes:
        text: What it says.
        is_needed: Whether a question needs it.
    """

    text: str
    is_needed: bool


def _in_turns(told: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as turns of a chat, those that one says in a row as one turn."""
    spoken = [(role, [message.text for message in mine]) for role, mine in groupby(told, key=lambda one: one.role)]
    return [{"role": role, "content": "\n".join(texts)} for role, texts in spoken]


class ToldTexts:
    """Draws samples from our own corpus and from passages; values of items are drawn anew each time.

    Args:
        tokenizer: Of the model, which has a chat template.
        items: Of the corpus.
        broad: Passages with their questions.
        requests: Ordinary requests with the backbone's own replies.
        tokens: Most tokens of a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        items: Sequence[Item],
        broad: BroadRows,
        requests: Sequence[tuple[str, str]],
        tokens: int = TOKENS,
    ) -> None:
        self._tokenizer, self._broad, self._requests, self._tokens = tokenizer, broad, requests, tokens
        self._items = [item for item in items if item.ask and item.unknown]
        self._plain = [item for item in self._items if item.writer in PLAIN_WRITERS]
        self._talks = [item for item in self._items if item.kind == "conversation"]
        self._asked_of: dict[int, list[Question]] = {}
        for question in broad.questions:
            self._asked_of.setdefault(question.passages[0], []).append(question)
        possible = {"told": self._items, "within": self._talks, "passage": self._asked_of, "request": requests}
        self._mixture = [(kind, share) for kind, share in MIXTURE if possible[kind]]
        if not self._mixture:
            raise ValueError("Nothing to ask about: no item of the corpus, no passage and no request.")

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples of the mixture, those of a text beside each other."""
        drawn: list[Sample] = []
        for _ in range(MOST_TRIES * count):
            if len(drawn) == count:
                return drawn
            kind = rng.choices([k for k, _ in self._mixture], [w for _, w in self._mixture])[0]
            most = TOGETHER if kind == "passage" else TOGETHER * 2  # passages have few questions
            size, mark = min(most, count - len(drawn)), rng.getrandbits(48) + 1
            samples = getattr(self, f"_{kind}")(rng, size)
            if max(len(sample.input_ids) for sample in samples) <= LONGEST:
                drawn += [replace(sample, memory=mark) for sample in samples]
        raise ValueError(f"No prompt of at most {LONGEST} tokens was found: the tokenizer cuts texts too finely.")

    # --- kinds ------------------------------------------------------------------------------------

    def _told(self, rng: random.Random, count: int) -> list[Sample]:
        item = self._item(rng)
        asked = self._some_questions(rng, item, count)
        lines = self._lines(rng, item, item.told, asked)
        return self._about(rng, item, asked, [], self._text(rng, lines), count)

    def _within(self, rng: random.Random, count: int) -> list[Sample]:
        """Asked in the conversation itself, of which the later part stands in the prompt."""
        item = drawn(rng.choice(self._talks), rng)
        first = rng.choice((0, 0, len(item.told) // 2, max(len(item.told) - 3, 0)))
        while first < len(item.told) and item.told[first].role != "user":
            first += 1
        turns = _in_turns(item.told[first:])
        if turns and turns[-1]["role"] == "user":  # what is asked next is the user's, too
            turns.append({"role": "assistant", "content": rng.choice(NOTED)})
        asked = self._some_questions(rng, item, count)
        lines = self._lines(rng, item, item.told[:first], asked)
        return self._about(rng, item, asked, turns, self._text(rng, lines), count)

    def _passage(self, rng: random.Random, count: int) -> list[Sample]:
        place = rng.choice(list(self._asked_of))
        text = self._text(rng, [Line(self._broad.texts[place], True)])
        asked = rng.sample(self._asked_of[place], min(count, len(self._asked_of[place])))
        begin = self._beginning(rng)
        samples: list[Sample] = []
        for number in range(count):
            question = asked[number % len(asked)]
            if rng.random() < UNKNOWN_PASSAGE:
                other = rng.choice(self._broad.questions)
                if other.passages[0] != place and not other.is_answered_in(text):
                    unknown = self._sample(rng, begin, text, other.text, DECLINED, DECLINED)
                    samples.append(replace(unknown, kind="unknown passage"))
                    continue
            known = self._sample(rng, begin, text, question.text, question.reply, question.answers[0])
            samples.append(replace(known, kind="passage"))
        return samples

    def _request(self, rng: random.Random, count: int) -> list[Sample]:
        item = self._item(rng)
        text = self._text(rng, self._lines(rng, item, item.told, []))
        begin = self._beginning(rng)
        samples: list[Sample] = []
        for request, reply in rng.choices(self._requests, k=count):
            prompt = [*begin, {"role": "user", "content": request}]
            sample = encode_sample(self._tokenizer, AsRead(()), prompt, reply, told=text)
            # A reply may have been cut where it grew long: that it ends there is not learnt.
            samples.append(replace(sample, input_ids=sample.input_ids[:-1], weights=(), kind="request"))
        return samples

    # --- a text -----------------------------------------------------------------------------------

    def _item(self, rng: random.Random) -> Item:
        """An item with values drawn."""
        return drawn(rng.choice(self._plain if self._plain and rng.random() < PLAIN_SHARE else self._items), rng)

    def _lines(self, rng: random.Random, item: Item, told: Sequence[Message], asked: Sequence[Asked]) -> list[Line]:
        """What memory holds of an item: turns, messages or a whole document, and what was asked about it before."""
        needed = {place for question in asked for place in question.needs}
        style = rng.random()
        as_turns = item.kind == "conversation" or (item.kind == "note" and style < 0.5)
        if as_turns or (item.kind == "note" and style < 0.75):
            lines = [
                Line(turn_text(message.role, message.text) if as_turns else message.text, place in needed)
                for place, message in enumerate(told)
            ]
        else:
            lines = [Line("\n\n".join(message.text for message in told), True)]
        if as_turns and rng.random() < ASKED_BEFORE:
            others = [question for question in item.ask if question not in asked]
            for question in rng.sample(others, min(len(others), rng.choice((1, 2, 4)))):
                lines += [
                    Line(turn_text("user", question.q), False),
                    Line(turn_text("assistant", question.full), False),
                ]
        return lines

    def _text(self, rng: random.Random, own: Sequence[Line]) -> str:
        """Lines with some of other items before or behind them; what no question needs is left out where it is long."""
        others = [self._other(rng) for _ in range(rng.choice(OTHERS))]
        place = rng.choice((0, len(others)))
        lines = [*others[:place], *own, *others[place:]]
        sizes = [len(encode_inert(self._tokenizer, line.text)) + 1 for line in lines]
        left_out: set[int] = set()
        for dispensable in (others, own):
            places = [n for n, line in enumerate(lines) if line in dispensable and not line.is_needed]
            rng.shuffle(places)
            while places and sum(sizes) - sum(sizes[n] for n in left_out) > self._tokens:
                left_out.add(places.pop())
        return "\n".join(line.text.strip() for n, line in enumerate(lines) if n not in left_out)

    def _other(self, rng: random.Random) -> Line:
        """A message of another item, or a passage."""
        if self._broad.texts and rng.random() < 0.2:
            return Line(rng.choice(self._broad.texts), False)
        item = drawn(rng.choice(self._items), rng)
        message = rng.choice(item.told)
        return Line(turn_text(message.role, message.text) if item.kind == "conversation" else message.text, False)

    # --- what is asked about it -------------------------------------------------------------------

    def _some_questions(self, rng: random.Random, item: Item, count: int) -> list[Asked]:
        """Different questions of an item as far as there are."""
        weights = [KIND_WEIGHTS.get(question.kind, 1.0) for question in item.ask]
        found: list[int] = []
        while len(found) < count and any(weights):
            number = rng.choices(range(len(item.ask)), weights)[0]
            weights[number] = 0
            found.append(number)
        return [item.ask[number] for number in found]

    def _about(
        self,
        rng: random.Random,
        item: Item,
        asked: Sequence[Asked],
        turns: Sequence[dict[str, str]],
        text: str,
        count: int,
    ) -> list[Sample]:
        """Told and unknown questions about an item behind the same text."""
        begin = [*self._beginning(rng), *turns]
        samples: list[Sample] = []
        for number in range(count):
            if number >= len(asked) or rng.random() < UNKNOWN:
                question = self._absent(rng, item) if rng.random() < ABSENT else rng.choice(item.unknown)
                samples.append(replace(self._sample(rng, begin, text, question, DECLINED, DECLINED), kind="unknown"))
                continue
            question = asked[number]
            before: list[dict[str, str]] = []
            if question.kind == "follow-up" and (place := item.ask.index(question)):
                before = exchange(item.ask[place - 1])
            replies = (question.full, short_reply(question), question.short)
            told = self._sample(rng, [*begin, *before], text, question.q, *replies)
            samples.append(replace(told, kind="told"))
        return samples

    def _absent(self, rng: random.Random, item: Item) -> str:
        """A question that another item answers."""
        others = self._items if len(self._items) > 1 else [item]
        other = rng.choice(others)
        while len(others) > 1 and other.id == item.id:
            other = rng.choice(others)
        return rng.choice([q for q in drawn(other, rng).ask if q.kind != "follow-up"] or other.ask).q

    def _beginning(self, rng: random.Random) -> list[dict[str, str]]:
        return [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < SYSTEM_SHARE else []

    def _sample(
        self,
        rng: random.Random,
        before: Sequence[dict[str, str]],
        text: str,
        question: str,
        full: str,
        short: str,
        stressed: Sequence[str] = (),
    ) -> Sample:
        is_short = rng.random() < SHORT_SHARE
        content = typed(rng, question)
        content = f"{content}\n{rng.choice(SHORT)}" if is_short else content
        prompt = [*before, {"role": "user", "content": content}]
        reply = short if is_short else full
        return encode_sample(self._tokenizer, AsRead(()), prompt, reply, stressed=stressed, told=text)
