"""Samples of told things: conversations, notes and documents of our own corpus, asked as people ask.

Kinds of samples, drawn at random:

* ``told``: a question about what was told, read from memory alone;
* ``within``: the same in the conversation itself: the latest turns stand in the prompt, the earlier ones in memory;
* ``unknown``: a question that nothing told answers, declined: about what was told, or of a text that is not there;
* ``reply``: a message that asks nothing, answered as the assistant of the corpus does;
* ``passage``: a question about a passage of another origin;
* ``tool``: a question beside tools: answered from a tool's result, by calling one, or from memory that knows.

What is read before each is what recall brings from a memory of the item, of earlier questions with their answers, and
of texts that have nothing to do with it. Four questions, told and unknown, are asked of one memory: a step that encodes
what they read does so once for all of them.
"""

import json
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mplus.config import MemoryConfig
from mplus.recall.late_interaction import LateInteraction
from mplus.training.chunk.as_remembered import as_remembered
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.offered_tools import call_text, called, offered
from mplus.training.chunk.questions import Question
from mplus.training.chunk.sample import TOGETHER, AsRead, Sample, encode_sample
from mplus.training.chunk.tellings import DECLINED, Telling
from mplus.training.chunk.typed import typed
from mplus.training.talk.corpus import PLAIN_WRITERS
from mplus.training.talk.format import Question as Asked

MIXTURE = (
    ("told", 0.64),
    ("within", 0.03),
    ("unknown", 0.15),
    ("reply", 0.02),
    ("passage", 0.13),
    ("tool", 0.03),
)
SHORT = ("Answer in a few words.", "Answer briefly.", "Just the answer, please.")
SYSTEMS = ("You are a helpful assistant.", "You are a friendly assistant. Be brief.", "Answer from what you were told.")
LONGEST, LONGEST_TOOL = 256, 384
"""Most tokens of a prompt with its reply, and of one that describes tools."""
RESULT_SHARE, CALL_SHARE = 0.55, 0.25
"""So many questions beside tools have a result already, and so many are to be looked up."""
PLAIN_SHARE = 0.55
"""So many samples are of plain text, which is two fifths of the corpus."""
ATTRIBUTE_SHARE = 0.2
"""So many told questions ask for an attribute (a name, an age, a price), as most of those that nothing answers do."""
ABSENT_SHARE = 0.5
"""So many unknown questions are answered by a text that memory does not hold; so their form tells nothing."""
KIND_WEIGHTS = {"why": 1.5, "change": 2.0}
"""How often kinds of questions are drawn that are answered least, beside their share of the corpus."""
OTHERS = (0, 0, 0, 4, 12, 40, 160)
"""Other texts in the memory."""
ATTRIBUTE = re.compile(
    r"\b(name|called|old|age|costs?|much|many|colou?r|phone|number|address|breed|weigh|big|high|floor|far|long)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w{4,}")
_COMMON = frozenset(
    "what when where which does have will with that this from there their they your many much were name called".split()
)


class Scene(NamedTuple):
    """A memory that several questions are asked of.

    Attributes:
        telling: The item that it is about.
        last: The last message of it that was told.
        memory: Chunks in the order in which they were written.
        numbers: Questions that are asked of it, by number.
    """

    telling: Telling
    last: int
    memory: list[int]
    numbers: list[int]


@dataclass
class TalkSamples:
    """Draws samples from encoded items and passages.

    Attributes:
        bank: Every text, encoded.
        scorer: Recall as it will be at reading.
        layer: Whose states it scores.
        tellings: Items in the bank.
        passages: Numbers of texts that have nothing to do with any item, and are asked about in ``questions``.
        questions: About passages.
        config: Of the memories that are read.
        mixture: How often each kind is drawn.
    """

    bank: ChunkBank
    scorer: LateInteraction
    layer: int
    tellings: Sequence[Telling]
    passages: Sequence[int]
    questions: Sequence[Question]
    config: MemoryConfig
    mixture: Sequence[tuple[str, float]] = MIXTURE
    recall: BankRecall = field(init=False)

    def __post_init__(self) -> None:
        self.recall = BankRecall(self.bank, self.scorer, self.layer)
        self._attributes = _attribute_questions(self.tellings)
        polar = [q for t in self.tellings for q in t.item.ask if q.kind == "yes/no"]
        agreed = sum(map(_is_yes, polar))
        self._yes_weight = (len(polar) - agreed) / agreed if agreed else 1.0
        talks = [t for t in self.tellings if t.item.kind == "conversation"]
        self._by_plainness = [_by_plainness(self.tellings), _by_plainness(talks)]

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples of the mixture."""
        kinds = rng.choices([k for k, _ in self.mixture], [w for _, w in self.mixture], k=count)
        together = [kind for kind in kinds if kind in ("told", "unknown")]
        samples = [self._one(rng, kind) for kind in kinds if kind not in ("told", "unknown")]
        for start in range(0, len(together), TOGETHER):
            samples += self._of_one_memory(rng, together[start : start + TOGETHER])
        return samples

    def _one(self, rng: random.Random, kind: str) -> Sample:
        while True:
            sample = getattr(self, f"_{kind}")(rng)
            if sample is not None and _is_short(sample, kind):
                return replace(sample, kind=kind)

    def _of_one_memory(self, rng: random.Random, kinds: Sequence[str]) -> list[Sample]:
        """Samples of these kinds, told and unknown, about one memory."""
        while True:
            scene = self._scene(rng, kinds.count("told"))
            numbers = iter(scene.numbers)
            made = [self._told(rng, scene, next(numbers)) if k == "told" else self._unknown(rng, scene) for k in kinds]
            if all(map(_is_short, made, kinds)):
                mark = rng.getrandbits(48) + 1
                return [replace(sample, kind=k, memory=mark) for sample, k in zip(made, kinds, strict=True)]

    def _scene(self, rng: random.Random, count: int) -> Scene:
        """A memory of an item of which as many questions are asked, some twice where there are fewer."""
        telling, first = self._telling_and_question(rng) if count else (self._telling(rng), 0)
        asked, end = telling.item.ask, len(telling.item.told) - 1
        last = end if rng.random() < 0.7 else rng.randint(asked[first].after if count else 0, end)
        weights = [weight * (q.after <= last) for q, weight in zip(asked, self._weights(telling), strict=True)]
        numbers = [first][:count]
        while len(numbers) < count:
            weights[numbers[-1]] = 0
            wanted = [weight * bool(ATTRIBUTE.search(q.q)) for q, weight in zip(asked, weights, strict=True)]
            wanted = wanted if any(wanted) and rng.random() < ATTRIBUTE_SHARE else weights
            numbers += rng.choices(range(len(asked)), wanted) if any(wanted) else [rng.choice(numbers)]
        return Scene(telling, last, self.memory(rng, telling, last, [], without=numbers), numbers)

    def _telling(self, rng: random.Random, *, talks: bool = False) -> Telling:
        """An item; a conversation if asked for. Plain text is drawn more often than its number of items."""
        plain, others = self._by_plainness[talks]
        return rng.choice(plain if plain and (not others or rng.random() < PLAIN_SHARE) else others)

    def _telling_and_question(self, rng: random.Random) -> tuple[Telling, int]:
        """An item and the number of one of its questions."""
        if self._attributes and rng.random() < ATTRIBUTE_SHARE:
            return rng.choice(self._attributes)
        telling = self._telling(rng)
        return telling, self._number(rng, telling)

    def _number(self, rng: random.Random, telling: Telling) -> int:
        """A question of an item: scarce kinds more often, yes as often as no."""
        return rng.choices(range(len(telling.item.ask)), self._weights(telling))[0]

    def _weights(self, telling: Telling) -> list[float]:
        asked = telling.item.ask
        return [KIND_WEIGHTS.get(q.kind, 1.0) * (self._yes_weight if _is_yes(q) else 1.0) for q in asked]

    # --- kinds ------------------------------------------------------------------------------------

    def _told(self, rng: random.Random, scene: Scene, number: int) -> Sample:
        telling = scene.telling
        question = telling.item.ask[number]
        before: list[dict[str, str]] = []
        memory = scene.memory
        if question.kind == "follow-up" and number:
            asked = telling.item.ask[number - 1]
            if telling.asked and rng.random() < 0.6:
                turns = self.bank.chunks_in(telling.asked[number - 1])
                memory = [*(chunk for chunk in memory if chunk not in turns), *turns]
            else:
                before = exchange(asked)
        needed = self._needed(telling, question)
        text = typed(rng, question.q)
        read = as_remembered(self.recall, text, memory, self._config(rng), needed=needed)
        return self._asked(rng, read, before, text, question.full, short_reply(question), question.short)

    def _within(self, rng: random.Random) -> Sample | None:
        """Asked while what was said last stands in the prompt; a fact told there is read from there."""
        telling = self._telling(rng, talks=True)
        number = self._number(rng, telling)
        question = telling.item.ask[number]
        last = self._moment(rng, telling, question)
        size = rng.choice((1, 2, 2, 3))
        first = max(last + 1 - size, 0)
        shown = telling.item.told[first : last + 1]
        before = [{"role": message.role, "content": message.text} for message in shown]
        if question.kind == "follow-up" and number:
            before = exchange(telling.item.ask[number - 1])
            first = last + 1
        memory = self.memory(rng, telling, first - 1, [], without=[number])
        needed = self._needed(telling, question) & {c for n in telling.told[:first] for c in self.bank.chunks_of[n]}
        text = typed(rng, question.q)
        read = as_remembered(self.recall, text, memory, self._config(rng), needed=needed)
        return self._asked(rng, read, before, text, question.full, short_reply(question), question.short)

    def _unknown(self, rng: random.Random, scene: Scene) -> Sample:
        telling = scene.telling
        absent = self._absent(rng, telling) if rng.random() < ABSENT_SHARE else None
        text = typed(rng, absent or rng.choice(telling.item.unknown))
        read = as_remembered(self.recall, text, scene.memory, self._config(rng))
        return self._asked(rng, read, [], text, DECLINED, DECLINED)

    def _absent(self, rng: random.Random, telling: Telling) -> str | None:
        """A question that another item answers and this one, which has few of its words, does not; None: found none."""
        here = set(_WORD.findall(" ".join(message.text for message in telling.item.told).lower()))
        for _ in range(20):
            other, number = self._telling_and_question(rng)
            question = other.item.ask[number]
            words = set(_WORD.findall(question.q.lower())) - _COMMON
            is_strange = len(words) > 1 and len(words & here) <= len(words) / 3
            if other.item.id != telling.item.id and question.kind != "follow-up" and is_strange:
                return question.q
        return None

    def _reply(self, rng: random.Random) -> Sample | None:
        """What the assistant said to a message, with what was said before in memory."""
        telling = self._telling(rng, talks=True)
        told = telling.item.told
        places = [n for n in range(1, len(told)) if told[n].role == "assistant" and told[n - 1].role == "user"]
        if not places:
            return None
        place = rng.choice(places)
        memory = self.memory(rng, telling, place - 2, [], without=())
        text = told[place - 1].text
        read = as_remembered(self.recall, text, memory, self._config(rng))
        prompt = [{"role": "user", "content": text}]
        return encode_sample(self.bank.tokenizer, read, prompt, told[place].text)

    def _passage(self, rng: random.Random) -> Sample:
        question = rng.choice(self.questions)
        others = rng.sample(list(self.passages), min(rng.choice((0, 4, 40, 160, 160)), len(self.passages)))
        texts = [*question.passages, *others]
        rng.shuffle(texts)
        memory = self.bank.chunks_in(dict.fromkeys(texts))
        text = typed(rng, question.text)
        needed = self.bank.gold_chunks(question)
        gold = set(as_remembered(self.recall, text, needed, self.config).chunks[-1:]) if needed else set[int]()
        read = as_remembered(self.recall, text, memory, self._config(rng), needed=gold)
        return self._asked(rng, read, [], text, question.reply, question.answers[0], question.answers)

    def _tool(self, rng: random.Random) -> Sample | None:
        """A question beside tools, with another's text in memory, or the one that it asks about."""
        telling, number = self._telling_and_question(rng)
        question = telling.item.ask[number]
        if question.kind == "follow-up":
            return None
        tools = offered(rng)
        style, last = rng.random(), len(telling.told) - 1
        is_known = style >= RESULT_SHARE + CALL_SHARE
        owner = telling if is_known else self._telling(rng)
        if owner.item.id == telling.item.id and not is_known:
            return None
        memory = self.memory(
            rng, owner, last if is_known else len(owner.told) - 1, [], without=[number] if is_known else ()
        )
        text = typed(rng, question.q)
        needed = self._needed(telling, question) if is_known else set[int]()
        read = as_remembered(self.recall, text, memory, self._config(rng), needed=needed)
        name, call = called(rng, tools, text)
        prompt: list[dict[str, Any]] = [{"role": "user", "content": text}]
        if is_known:
            return encode_sample(self.bank.tokenizer, read, prompt, question.full, tools=tools)
        if style >= RESULT_SHARE:
            return encode_sample(self.bank.tokenizer, read, prompt, call_text(name, call), tools=tools)
        result = " ".join(telling.item.told[n].text for n in question.needs)
        prompt += [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": call}}]},
            {
                "role": "tool",
                "content": json.dumps({"result": result}, ensure_ascii=False) if rng.random() < 0.3 else result,
            },
        ]
        return encode_sample(self.bank.tokenizer, read, prompt, question.full, tools=tools)

    # --- what a sample is made of -----------------------------------------------------------------

    def _config(self, rng: random.Random) -> MemoryConfig:
        """Mostly as the model reads; now and then more or less."""
        if rng.random() < 0.7:
            return self.config
        changed = {"recalled_tokens": rng.choice((128, 192, 384)), "short_term_tokens": rng.choice((64, 128, 256))}
        return self.config.model_copy(update=changed)

    @staticmethod
    def _moment(rng: random.Random, telling: Telling, question: Asked) -> int:
        """The last message that was told when the question is asked."""
        last = len(telling.item.told) - 1
        return last if rng.random() < 0.7 else rng.randint(question.after, last)

    def memory(
        self, rng: random.Random, telling: Telling, last: int, turns: list[int], *, without: Collection[int]
    ) -> list[int]:
        """Chunks in the order in which they were written.

        Args:
            rng: Decides what else is there.
            telling: What was told.
            last: The last message of it.
            turns: Turns that were said just now.
            without: Questions that were not asked before.
        """
        own = list(dict.fromkeys(telling.told[: last + 1]))
        asked_before = [n for n in range(len(telling.asked)) if n not in without and telling.item.ask[n].after <= last]
        if asked_before and rng.random() < 0.5:
            for number in rng.sample(asked_before, min(len(asked_before), rng.choice((1, 2, 4)))):
                own += telling.asked[number]
        if telling.said and rng.random() < 0.7:
            for turn in rng.sample(telling.said, min(len(telling.said), rng.choice((1, 2, 4)))):
                own += turn
        others = rng.sample(list(self.passages), min(rng.choice(OTHERS), len(self.passages)))
        place = rng.choice((0, len(others), rng.randint(0, len(others))))
        return self.bank.chunks_in(dict.fromkeys([*others[:place], *own, *others[place:], *turns]))

    def _needed(self, telling: Telling, question: Asked) -> set[int]:
        """Chunks that hold the answer, or where none does word for word, all of the messages that are needed."""
        texts = dict.fromkeys(telling.told[n] for n in question.needs)
        chunks = self.bank.chunks_in(texts)
        holding = {c for c in chunks if any(s.lower() in self.bank.texts[c].lower() for s in question.short)}
        if holding and len(texts) > 1 and question.kind in ("change", "list", "order"):
            return set(chunks[:6])
        return holding or set(chunks[:4])

    def _asked(
        self,
        rng: random.Random,
        read: AsRead,
        before: list[dict[str, str]],
        text: str,
        full: str,
        short: str,
        stressed: Sequence[str] = (),
    ) -> Sample:
        """The question in one of the forms that people use, with the answer that fits the form."""
        style = rng.random()
        tokenizer = self.bank.tokenizer
        if style >= 0.9 and not before:
            return encode_sample(tokenizer, read, f"Question: {text}\nAnswer:", f" {short}\n", stressed=stressed)
        is_short = style >= 0.68
        content = f"{text}\n{rng.choice(SHORT)}" if is_short else text
        system = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.12 else []
        prompt = [*system, *before, {"role": "user", "content": content}]
        return encode_sample(tokenizer, read, prompt, short if is_short else full, stressed=stressed)


def _is_short(sample: Sample, kind: str) -> bool:
    return len(sample.input_ids) <= (LONGEST_TOOL if kind == "tool" else LONGEST)


def _attribute_questions(tellings: Sequence[Telling]) -> list[tuple[Telling, int]]:
    """Items with the numbers of their questions for an attribute."""
    return [(t, n) for t in tellings for n, question in enumerate(t.item.ask) if ATTRIBUTE.search(question.q)]


def _by_plainness(tellings: Sequence[Telling]) -> tuple[list[Telling], list[Telling]]:
    plain = [t for t in tellings if t.item.writer in PLAIN_WRITERS]
    return plain, [t for t in tellings if t.item.writer not in PLAIN_WRITERS]


def _is_yes(question: Asked) -> bool:
    return question.kind == "yes/no" and question.short[0].lower().startswith("yes")


def exchange(asked: Asked) -> list[dict[str, str]]:
    """A question with its full answer, as turns of a chat."""
    return [{"role": "user", "content": asked.q}, {"role": "assistant", "content": asked.full}]


def short_reply(question: Asked) -> str:
    """The shortest right answer; of a list all of its parts."""
    return ", ".join(question.short) if question.kind == "list" else question.short[0]
