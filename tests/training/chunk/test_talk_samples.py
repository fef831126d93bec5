"""Samples of told things: read as a real memory is read, and the answers that fit."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mplus import MemoryConfig, MPlus, parse_tool_calls
from mplus.recall.choose import recall
from mplus.recall.gate import BestUnit, Gate
from mplus.recall.late_interaction import LateInteraction
from mplus.testing import tiny_model
from mplus.training.ahead import pooled_batches
from mplus.training.chunk.as_remembered import as_remembered
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.gate import GateExample, GateSettings, gate_examples, train_gate
from mplus.training.chunk.read_adapter import ReaderSettings
from mplus.training.chunk.sample import TOGETHER
from mplus.training.chunk.talk_samples import ATTRIBUTE, TalkSamples
from mplus.training.chunk.tellings import DECLINED, add_tellings
from mplus.training.chunk.typed import typed
from mplus.training.talk import talk_items
from mplus.training.talk.corpus import PLAIN_WRITERS

CONFIG = MemoryConfig(
    short_term_tokens=96, recalled_tokens=160, recalled_neighbours=1, relevance_cutoff=0.5, best_sentence_times=2
)
TOLD = [
    "User: My name is Tomas and I live in Graz with two cats.",
    "Assistant: Nice to meet you. What are the cats called?",
    "User: Mitzi and Ferdinand. Mitzi is the older one. She came from a farm near Linz, where she had caught mice.",
    "User: I work as a carpenter, mostly kitchens and stairs, since my uncle left me the workshop.",
    "User: On Friday the vet comes, at four. Remind me of the vaccination card, it is in the blue folder.",
    "User: The workshop is closed in August.",
]
ASKED = ["what are my cats called", "When does the vet come?", "who left me the workshop?"]


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=CONFIG)


def chunks_of_a_read(model: MPlus, question: str) -> list[int]:
    """Serial number of the chunk of every token that a real read has in front of its prompt, in reading order."""
    memory = model.new_memory()
    for number, text in enumerate(TOLD):
        model.write(memory, text, source=f"turn {number}")
    track = memory.state.tracks[0]
    with torch.inference_mode():
        asked = model.weights.question(model.tokenizer(question)["input_ids"], track.recall_layer)
        found = recall(model.weights.scorers["late"], track, CONFIG, asked)
    serials = torch.cat([found.provenance.chunks, track.short_term.provenance.chunks])
    return (serials if found.order is None else serials[found.order]).tolist()


def chunks_of_a_sample(model: MPlus, question: str) -> list[int]:
    layer = model.weights.recall_layer
    bank = ChunkBank(model.weights, model.tokenizer, CONFIG, only_layer=layer)
    memory = bank.chunks_in(bank.add(TOLD))
    read = as_remembered(BankRecall(bank, model.weights.scorers["late"], layer), question, memory, CONFIG)
    laid = [memory.index(chunk) for chunk in read.chunks for _ in bank.input_ids[chunk]]
    return [laid[place] for place in read.order] if read.order else laid


@pytest.mark.parametrize("question", ASKED)
def test_a_sample_is_read_as_a_memory_is(model: MPlus, question: str) -> None:
    assert chunks_of_a_sample(model, question) == chunks_of_a_read(model, question)


def samples_of(model: MPlus, mixture: Sequence[tuple[str, float]]) -> TalkSamples:
    layer = model.weights.recall_layer
    bank = ChunkBank(model.weights, model.tokenizer, CONFIG, only_layer=layer)
    items = [item for item in talk_items("train") if item.kind == "conversation"][:3]
    tellings = add_tellings(bank, items, 1, random.Random(0))
    passages = bank.add([f"Text number {n} has nothing to do with anything at all." for n in range(3)])
    return TalkSamples(bank, model.weights.scorers["late"], layer, tellings, passages, [], CONFIG, mixture)


def test_half_of_what_is_declined_another_text_answers(model: MPlus) -> None:
    samples = samples_of(model, (("unknown", 1.0),))
    rng = random.Random(3)
    known = {question.q: t.item.id for t in samples.tellings for question in t.item.ask}
    absent = [(t, samples._absent(rng, t)) for t in samples.tellings for _ in range(4)]
    found = [(t, q) for t, q in absent if q is not None]
    assert found
    assert all(known[q] != t.item.id for t, q in found)


def test_a_fifth_of_questions_ask_for_an_attribute(model: MPlus) -> None:
    samples = samples_of(model, (("told", 1.0),))
    rng = random.Random(0)
    drawn = [samples._telling_and_question(rng) for _ in range(400)]
    asked = [t.item.ask[n].q for t, n in drawn]
    of_all = [question.q for t in samples.tellings for question in t.item.ask]
    shares = [sum(map(bool, map(ATTRIBUTE.search, questions))) / len(questions) for questions in (asked, of_all)]
    assert shares[0] == pytest.approx(0.2 + 0.8 * shares[1], abs=0.06)


def test_yes_is_drawn_as_often_as_no_and_scarce_kinds_more_often(model: MPlus) -> None:
    samples = samples_of(model, ())
    telling = samples.tellings[0]
    like = telling.item.ask[0]
    asked = [
        *(replace(like, kind="yes/no", short=("no",)) for _ in range(8)),
        *(replace(like, kind="yes/no", short=("yes",)) for _ in range(2)),
        *(replace(like, kind="change", short=("x",)) for _ in range(5)),
        *(replace(like, kind="which", short=("x",)) for _ in range(5)),
    ]
    telling = telling._replace(item=replace(telling.item, ask=tuple(asked)))
    samples = replace(samples, tellings=[telling])
    rng = random.Random(0)
    drawn = Counter((asked[n].kind, asked[n].short) for n in (samples._number(rng, telling) for _ in range(2000)))
    assert drawn["yes/no", ("yes",)] == pytest.approx(drawn["yes/no", ("no",)], rel=0.2)
    assert drawn["change", ("x",)] == pytest.approx(2 * drawn["which", ("x",)], rel=0.25)


def test_four_questions_are_asked_of_one_memory_and_stay_beside_each_other(
    model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mplus.training.chunk.talk_samples.LONGEST", 4096)  # the tokenizer counts bytes
    samples = samples_of(model, (("told", 0.6), ("unknown", 0.2), ("within", 0.2)))
    batches = pooled_batches(samples, ReaderSettings(batch=8), 0)
    marks = [sample.memory for batch in batches for sample in batch]
    times = Counter(mark for mark in marks if mark)
    assert max(times.values()) == TOGETHER
    assert sorted(times.values())[1:] == [TOGETHER] * (len(times) - 1)
    for mark in (mark for mark, count in times.items() if count == TOGETHER):
        first = marks.index(mark)
        assert first % TOGETHER == 0
        assert marks[first : first + TOGETHER] == [mark] * TOGETHER
    drawn = [sample for batch in batches for sample in batch if sample.memory]
    assert all(sample.kind in ("told", "unknown") for sample in drawn)
    # Little is read by one question that none of the others about its memory reads.
    read = {mark: [set(sample.chunks) for sample in drawn if sample.memory == mark] for mark in times}
    assert all(len(set.union(*sets)) < sum(map(len, sets)) for sets in read.values() if len(sets) > 1)


def test_questions_of_one_memory_were_all_told_by_then(model: MPlus) -> None:
    samples = samples_of(model, ())
    for seed in range(60):
        scene = samples._scene(random.Random(seed), TOGETHER)
        asked = scene.telling.item.ask
        assert len(set(scene.numbers)) == min(TOGETHER, sum(q.after <= scene.last for q in asked))
        assert all(asked[number].after <= scene.last for number in scene.numbers)


def test_what_an_assistant_said_wrong_stands_in_memory_too(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.training.chunk.tellings.EXCHANGES", 1.0)
    samples = samples_of(model, ())
    texts = lambda number: "".join(samples.bank.texts[c] for c in samples.bank.chunks_of[number])
    for telling in samples.tellings:
        right = {question.q: question for question in telling.item.ask}
        said = [(texts(asked).removeprefix("User: "), texts(answer)) for asked, answer in telling.said]
        wrong = [(q, answer) for q, answer in said if q in right]
        assert wrong
        assert all(not any(s.lower() in answer.lower() for s in right[q].short) for q, answer in wrong)
        assert any(q in telling.item.unknown and DECLINED in answer for q, answer in said)
    drawn = [samples.memory(random.Random(seed), samples.tellings[0], 99, [], without=()) for seed in range(20)]
    not_facts = set(samples.bank.chunks_in(n for turn in samples.tellings[0].said for n in turn))
    assert any(not_facts & set(chunks) for chunks in drawn)


def test_what_is_asked_about_is_read(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.training.chunk.talk_samples.LONGEST", 4096)  # the tokenizer counts bytes
    samples = samples_of(model, (("told", 1.0),))
    for sample in samples.draw(random.Random(1), 12):
        target = model.tokenizer.decode(sample.input_ids[sample.target :])
        known = {s for t in samples.tellings for q in t.item.ask for s in (q.full, *q.short, ", ".join(q.short))}
        assert any(answer in target for answer in known)
        assert sample.chunks


def test_what_nothing_answers_is_declined(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.training.chunk.talk_samples.LONGEST", 4096)
    for sample in samples_of(model, (("unknown", 1.0),)).draw(random.Random(1), 6):
        assert DECLINED in model.tokenizer.decode(sample.input_ids[sample.target :])


def test_questions_beside_tools_are_answered_looked_up_or_known(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.training.chunk.talk_samples.LONGEST_TOOL", 8192)
    samples = samples_of(model, (("tool", 1.0),))
    forms: set[str] = set()
    for sample in samples.draw(random.Random(2), 16):
        prompt = model.tokenizer.decode(sample.input_ids[: sample.target])
        target = model.tokenizer.decode(sample.input_ids[sample.target :])
        assert "You can call these tools" in prompt
        calls = parse_tool_calls(target.removesuffix(model.tokenizer.eos_token))[1]
        forms.add("call" if calls else "result" if "<tool_response>" in prompt else "memory")
        for call in calls:
            assert call.arguments is not None
            assert f'"{call.name}"' in prompt
            assert next(iter(call.arguments.values())) in prompt
    assert forms == {"call", "result", "memory"}


def test_the_same_seed_draws_the_same(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.training.chunk.talk_samples.LONGEST", 4096)
    samples = samples_of(model, (("told", 0.5), ("within", 0.3), ("unknown", 0.2)))
    assert samples.draw(random.Random(7), 8) == samples.draw(random.Random(7), 8)


def test_slips_keep_the_letters_of_a_question() -> None:
    rng = random.Random(0)
    for _ in range(200):
        made = typed(rng, "Where does Anna live?")
        assert sorted(made.lower().replace("?", "")) == sorted("where does anna live")


def test_the_gate_learns_which_questions_are_ordinary(model: MPlus) -> None:
    samples = samples_of(model, ())
    asked = gate_examples(samples, ["What is 2 plus 2?"], 40, random.Random(0))
    assert 8 < sum(example.is_needed for example in asked) < 32
    generator = torch.Generator().manual_seed(0)
    examples = [
        GateExample(
            torch.randn(3, 8, generator=generator) + (1.0 if needed else -1.0), BestUnit(0.1, 0.3, 0.5, 4), needed
        )
        for needed in (True, False) * 100
    ]
    found = train_gate(examples, Gate(torch.zeros(8), torch.ones(8), 4), GateSettings(steps=150))
    assert found["needed_kept"] > 0.9
    assert found["ordinary_spared"] > 0.9


def test_plain_text_is_drawn_more_often_than_its_number(model: MPlus) -> None:
    items = talk_items("train")
    plain = next(item for item in items if item.writer in PLAIN_WRITERS)
    others = [item for item in items if item.writer not in PLAIN_WRITERS][:9]
    bank = ChunkBank(model.weights, model.tokenizer, CONFIG, only_layer=model.weights.recall_layer)
    tellings = add_tellings(bank, [plain, *others], 1, random.Random(0))
    scorer = model.weights.scorers["late"]
    assert isinstance(scorer, LateInteraction)
    samples = TalkSamples(bank, scorer, model.weights.recall_layer, tellings, [], [], CONFIG, (("told", 1.0),))
    asked = {question.q.lower().strip("?. ") for question in tellings[0].item.ask}
    drawn = samples.draw(random.Random(1), 60)
    texts = [model.tokenizer.decode(sample.input_ids).lower() for sample in drawn]
    assert 12 <= sum(any(q in text for q in asked) for text in texts) <= 40
