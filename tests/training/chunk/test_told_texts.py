"""Samples of what is read as text: what stands in the prompt, and what is answered from it."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from mplus import MPlus
from mplus.generation.told import INSTRUCTION
from mplus.testing import tiny_model
from mplus.training.ahead import pooled_batches
from mplus.training.chunk import told_texts
from mplus.training.chunk.broad import BroadRows
from mplus.training.chunk.questions import Question
from mplus.training.chunk.read_adapter import ReaderSettings
from mplus.training.chunk.sample import TOGETHER, Sample
from mplus.training.chunk.tellings import DECLINED
from mplus.training.chunk.told_texts import ToldTexts
from mplus.training.talk import Item, Message, talk_items
from mplus.training.talk.format import Question as Asked

BROAD = BroadRows(
    ["The lighthouse of Skagen was built in 1858 of yellow bricks.", "Otters sleep on their backs, holding hands."],
    [
        Question("When was the lighthouse built?", ("1858",), (0,), "It was built in 1858."),
        Question("How do otters sleep?", ("on their backs",), (1,), "They sleep on their backs."),
    ],
)
REQUESTS = [
    ("What is the capital of Norway?", "Oslo."),
    ("Tell me a joke.", "I know none that is short enough to tell"),
]
MANY = 1 << 14


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model()


@pytest.fixture(autouse=True)
def bytes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte tokenizer makes some five tokens of one of a trained model's."""
    monkeypatch.setattr(told_texts, "LONGEST", MANY)


def item_of(told: Sequence[tuple[str, str]], asked: Sequence[Asked], kind: str = "conversation") -> Item:
    return replace(
        next(item for item in talk_items("train") if item.kind == kind),
        told=tuple(Message(role, text) for role, text in told),
        slots={},
        ask=tuple(asked),
        unknown=("What is my cat called?",),
    )


def asked(text: str, short: str, needs: int = 0, kind: str = "what") -> Asked:
    return Asked(text, (short,), f"It is {short}.", needs, (needs,), kind)


def prompt_and_reply(model: MPlus, sample: Sample) -> tuple[str, str]:
    ids = list(sample.input_ids)
    return model.tokenizer.decode(ids[: sample.target]), model.tokenizer.decode(ids[sample.target :])


def drawn(model: MPlus, samples: ToldTexts, count: int = 200) -> dict[str, list[tuple[str, str]]]:
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for sample in samples.draw(random.Random(0), count):
        assert not sample.chunks
        found[sample.kind].append(prompt_and_reply(model, sample))
    return found


def test_what_was_told_stands_before_the_question_as_recall_puts_it(model: MPlus) -> None:
    told = [("user", "Our boat is called Tern."), ("assistant", "A fine name."), ("user", "She is nine metres long.")]
    item = item_of(told, [asked("What is the boat called?", "Tern"), asked("How long is it?", "nine metres", 2)])
    found = drawn(model, ToldTexts(model.tokenizer, [item], BROAD, REQUESTS, MANY), 600)
    assert set(found) == {"told", "unknown", "passage", "unknown passage", "request"}
    turns = ("<|im_start|>user\nOur boat is called Tern.", "<|im_start|>user\nShe is nine metres long.")
    within = [prompt for prompt, _ in found["told"] if any(turn in prompt for turn in turns)]
    for prompt, reply in found["told"]:
        assert "Tern" in prompt and "nine metres" in prompt
        assert prompt in within or f"\n\n{INSTRUCTION}<|im_end|>" in prompt
        assert prompt in within or "User: Our boat is called Tern.\nAssistant: A fine name.\nUser: She is" in prompt
        assert reply.split("<")[0] in ("It is Tern.", "Tern", "It is nine metres.", "nine metres")
    assert 0 < len(within) < len(found["told"]) / 2
    assert (
        {reply for _, reply in found["unknown"]}
        == {f"{DECLINED}<|im_end|>"}
        == {r for _, r in found["unknown passage"]}
    )
    for prompt, reply in found["passage"]:
        assert reply.split("<")[0] in ("1858", "It was built in 1858.", "on their backs", "They sleep on their backs.")
        assert ("1858" if "1858" in reply else "on their backs") in prompt


def test_a_reply_that_may_have_been_cut_does_not_end(model: MPlus) -> None:
    found = drawn(model, ToldTexts(model.tokenizer, talk_items("train")[:3], BROAD, REQUESTS, MANY), 400)
    assert {reply for _, reply in found["request"]} == {reply for _, reply in REQUESTS}
    assert all(reply.endswith("<|im_end|>") for kind in ("told", "passage") for _, reply in found[kind])


def test_what_a_question_needs_is_never_left_out(model: MPlus) -> None:
    told = [("user", f"Message {number} is about nothing much.") for number in range(40)]
    told[17] = ("user", "The code of the gate is 4711.")
    item = item_of(told, [asked("What is the gate code?", "4711", 17)])
    samples = ToldTexts(model.tokenizer, [item], BroadRows([], []), [], 300)
    for prompt, reply in drawn(model, samples)["told"]:
        text = prompt.split(INSTRUCTION)[0]
        assert "4711" in reply and "4711" in prompt
        assert text == prompt or len(text) < 500


def test_a_follow_up_stands_behind_what_it_follows(model: MPlus) -> None:
    follows = [asked("Who sails?", "Ann"), asked("Since when?", "1998", kind="follow-up")]
    item = item_of([("user", "Ann has sailed since 1998.")], follows, "document")
    prompts = [
        prompt
        for prompt, reply in drawn(model, ToldTexts(model.tokenizer, [item], BROAD, []))["told"]
        if "1998" in reply
    ]
    assert prompts
    assert all(
        "user\nWho sails?<|im_end|>\n<|im_start|>assistant\nIt is Ann.<|im_end|>" in prompt for prompt in prompts
    )


def test_samples_of_a_text_stay_together_and_are_the_same_every_time(model: MPlus) -> None:
    samples = ToldTexts(model.tokenizer, talk_items("train")[:4], BROAD, REQUESTS, MANY)
    batches = pooled_batches(samples, ReaderSettings(batch=16), 3)
    assert batches == pooled_batches(samples, ReaderSettings(batch=16), 3)
    for batch in batches:
        memories = [sample.memory for sample in batch]
        assert all(memories.count(memory) % TOGETHER == 0 for memory in memories)
        assert sum(a != b for a, b in pairwise(memories)) == len(set(memories)) - 1


def test_nothing_to_ask_and_texts_that_are_too_long_say_so(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Nothing to ask about"):
        ToldTexts(model.tokenizer, [], BroadRows([], []), [])
    monkeypatch.setattr(told_texts, "LONGEST", 20)
    monkeypatch.setattr(told_texts, "MOST_TRIES", 1)
    with pytest.raises(ValueError, match="No prompt of at most 20 tokens"):
        ToldTexts(model.tokenizer, talk_items("train")[:1], BROAD, []).draw(random.Random(0), 4)
