"""Made-up passages and questions: what counts, how they are generated, and how a run reads them."""

import json
import random
from pathlib import Path

import pytest
import torch

from mplus.model import MPlus
from mplus.training.chunk import invented, invented_run
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.invented import AskingSamples, Generator, Inventor, fitting, whole_passage, write_squad
from mplus.training.chunk.questions import Question, read_squad
from mplus.training.chunk.read_adapter import new_adapter
from mplus.training.chunk.sample import Sample
from mplus.training.chunk.several import JoinedBanks, Mixed, Part
from mplus.training.chunk.topics import topic
from tests.conftest import TINY

PASSAGE = "The mill in Gdansk was built by Oluf Renn in 1614. It ground rye for the harbour."


def test_a_passage_ends_with_a_whole_sentence() -> None:
    words = " ".join(f"word{n}" for n in range(40))
    assert whole_passage(f"{words}. And then it bro") == f"{words}."
    assert whole_passage("Too short. ") is None
    assert whole_passage("the same three words again " * 20 + ".") is None, "a text that repeats itself"
    assert whole_passage(f"{words}.\n\nSecond paragraph of the text.") == f"{words}."


def test_a_question_fits_where_its_answer_is_in_the_passage_alone() -> None:
    asked = {
        " 1614\nQuestion: When was the mill in Gdansk built?": True,
        " 1615\nQuestion: When was the mill in Gdansk built?": False,
        " Oluf Renn\nQuestion: What did Oluf Renn build in the city?": False,
        " rye\nQuestion: It ground what for the harbour": False,
        " rye": False,
        "": False,
    }
    found = list(fitting([PASSAGE] * len(asked), asked))
    assert found == [(PASSAGE, "When was the mill in Gdansk built?", "1614")]


def test_asking_and_answering_are_learnt_without_memory(model: MPlus) -> None:
    question = Question("When?", ("1614", "in 1614"), (0,), "In 1614.")
    samples = AskingSamples(model.tokenizer, [PASSAGE], [question]).draw(random.Random(0), 40)
    texts = [model.tokenizer.decode(s.input_ids[s.target :]) for s in samples]
    assert all(not s.chunks and "1614" in text for s, text in zip(samples, texts, strict=True))
    assert {"Question: When?" in text for text in texts} == {True, False}


def test_generation_is_the_backbones_own(model: MPlus) -> None:
    prompts = [list(b"The mill"), list(b"A longer beginning of a text")]
    implementation = model.weights.backbone.config._attn_implementation
    with Generator(model, None) as generator:
        texts = generator.sampled(prompts, 6)
    assert model.weights.backbone.config._attn_implementation == implementation
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(prompt)
        for _ in range(6):
            hidden = model.weights.backbone.plain_states(torch.tensor(ids), model.weights.backbone.num_layers)[-1]
            ids.append(int(model.weights.backbone.logits(hidden[-1:]).argmax()))
            if ids[-1] == model.tokenizer.eos_token_id:
                ids.pop()
                break
        assert text == model.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


def test_what_is_made_up_is_asked_in_turn(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    written = " ".join(f"word{n}" for n in range(40)) + " in 1614."
    asked = [" 1614\nQuestion: When was it all?", " word7\nQuestion: Which word is it?"]
    replies = iter([[written] * 2, asked * invented.ATTEMPTS])

    def sampled(self: Generator, prompts: list[list[int]], most: int, *, temperature: float = 0.0) -> list[str]:
        if temperature:
            return next(replies)
        return [" 1614" if "When" in model.tokenizer.decode(ids) else " other" for ids in prompts]

    monkeypatch.setattr(Generator, "sampled", sampled)
    monkeypatch.setattr(invented, "FROM_TEXT", 0.0)
    adapter = new_adapter(model.weights, invented.ASKER)
    [(passage, questions)] = Inventor(model, adapter, ["A sentence of some words."], 0).invent(2, lambda _: None)
    assert passage.endswith(written) and questions == [("When was it all?", "1614")]


def test_a_file_of_them_reads_as_squad(tmp_path: Path) -> None:
    write_squad(tmp_path / "made.json", [(PASSAGE, [("When was it built?", "1614")])])
    passages, [question], _ = read_squad(tmp_path / "made.json")
    assert passages == [PASSAGE] and question.answers == ("1614",)
    assert question.reply == "The mill in Gdansk was built by Oluf Renn in 1614."
    assert [p.name for p in tmp_path.iterdir()] == ["made.json"]


def test_shards_hold_their_own_passages_and_questions(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invented_run, "SHARD", 2)
    made = [(f"Mill number {n} was built by Renn{n}. It is old.", [(f"Who built {n}?", f"Renn{n}")]) for n in range(5)]
    write_squad(tmp_path / "made.json", made)
    found = invented_run.shards(tmp_path / "made.json", model, model, model.weights.scorers["late"].float(), 1)
    assert [len(shard.data.questions) for shard in found] == [2, 2, 1]
    for shard in found:
        for question in shard.data.questions:
            [passage] = question.passages
            text = "".join(shard.bank.texts[c] for c in shard.bank.chunks_of[passage])
            assert question.answers[0] in text
        assert all(sample.chunks for sample in shard.draw(random.Random(0), 6) if sample.kind == "passage")


def test_joined_banks_and_mixed_samples_number_chunks_alike(model: MPlus) -> None:
    banks = [ChunkBank(model.weights, model.tokenizer, TINY) for _ in range(2)]
    banks[0].add(["One text. ", "Another text."])
    banks[1].add(["A third one."])
    joined = JoinedBanks(banks)
    assert joined.first == [0, len(banks[0].input_ids), len(banks[0].input_ids) + len(banks[1].input_ids)]
    assert joined.input_ids[joined.first[1]] == banks[1].input_ids[0]
    torch.testing.assert_close(joined.states[joined.first[1]], banks[1].states[0])

    class Source:
        def draw(self, rng: random.Random, count: int) -> list[Sample]:
            return [Sample((0,), (1, 2), 1, clean=(0,)) for _ in range(count)]

    drawn = Mixed([Part(Source(), 0.5), Part(Source(), 0.5, joined.first[1])]).draw(random.Random(0), 40)
    assert len(drawn) == 40 and {s.chunks for s in drawn} == {(0,), (joined.first[1],)}
    assert all(s.chunks == s.clean for s in drawn)


def test_topics_have_no_holes() -> None:
    rng = random.Random(0)
    topics = [topic(rng) for _ in range(300)]
    assert not any("{" in text for text in topics) and len(set(topics)) > 200


def test_invented_wants_questions() -> None:
    from mplus.training.run_settings import RunSettings

    with pytest.raises(ValueError, match="invented=5.*--squad"):
        RunSettings(model="m", texts=("t",), invented=5)
    assert json.loads(RunSettings(model="m", squad="q", invented=5).model_dump_json())["invented"] == 5
