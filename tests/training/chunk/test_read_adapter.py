"""Training sees exactly what reading will see."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mplus.backbone.adapters import Adapter
from mplus.backbone.backbone import Backbone
from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig
from mplus.evaluation.personas import persona
from mplus.generation.prompt import Prompt
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from mplus.training.ahead import POOLED_BATCHES, pooled_batches
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank, HeldStates
from mplus.training.chunk.ordinary_requests import answered, general_requests
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.sample import STRESS, AsRead, Sample, encode_sample
from mplus.training.loop import train
from mplus.training.run_folder import Log
from tests.conftest import TINY


@pytest.fixture
def bank(model: MPlus, text: str) -> ChunkBank:
    bank = ChunkBank(model.weights, model.tokenizer, TINY)
    bank.add([text[:90], text[200:260]])
    bank.states = HeldStates(states.float() for states in bank.states)
    return bank


def test_the_training_pass_equals_a_read(model: MPlus, bank: ChunkBank, text: str) -> None:
    reader = Reader(model.weights, bank, new_adapter(model.weights, ReaderSettings(rank=2)))
    ids = tuple(b"Which box? The blue one.")
    samples = [Sample(tuple(bank.chunks_of[0]), ids, 10), Sample(tuple(bank.chunks_of[1]), ids[:15], 10)]
    logits = reader._logits(samples, reader.backbone, memory=True)
    # The bank keeps states in bfloat16 once; write the same texts and read with the same prompt.
    for part, sample, found in zip((text[:90], text[200:260]), samples, logits, strict=True):
        memory = model.new_memory()
        model.write(memory, part, source="a")
        request = model.read_request(memory, Prompt(sample.input_ids, (0, len(sample.input_ids))))
        expected = prefill(model.weights, [request], all_logits=True).logits[0, sample.target - 1 : -1]
        torch.testing.assert_close(found, expected.float(), atol=0.05, rtol=0.05)


def by_chance(model: MPlus) -> Adapter:
    """An adapter whose layers all change something."""
    generator = torch.Generator().manual_seed(0)
    adapter = new_adapter(model.weights, ReaderSettings(rank=2))
    return {n: replace(w, up=torch.randn(w.up.shape, generator=generator) * 0.1) for n, w in adapter.items()}


def with_backbone(model: MPlus, backbone: Backbone) -> MPlus:
    return MPlus(replace(model.weights, backbone=backbone), model.tokenizer, model.memory_config)


def test_an_adapter_that_writes_is_trained_as_it_writes_and_reads(model: MPlus, bank: ChunkBank, text: str) -> None:
    adapter, first = by_chance(model), bank.chunks_of[0][:2]
    reader = Reader(model.weights, bank, adapter, write_from=1)
    ids = tuple(b"Which box? The blue one.")
    samples = [Sample(tuple(first), ids, 10), Sample(tuple(bank.chunks_of[1]), ids[:15], 10), Sample((), ids, 10)]
    logits = reader._logits(samples, reader.backbone, memory=True)
    backbone = model.weights.backbone.reading_through(adapter, merge=True, write_from=1)
    shipped = with_backbone(model, backbone)
    written = model.tokenizer.decode([i for chunk in first for i in bank.input_ids[chunk]])
    for part, sample, found in zip((written, text[200:260]), samples, logits, strict=False):
        memory = shipped.new_memory()
        shipped.write(memory, part, source="a")
        request = shipped.read_request(memory, Prompt(sample.input_ids, (0, len(sample.input_ids))))
        expected = prefill(shipped.weights, [request], all_logits=True).logits[0, sample.target - 1 : -1]
        torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=1e-3)
    unwritten = reader._logits(samples[:1], model.weights.backbone.reading_through(adapter, merge=True), memory=True)
    assert (unwritten[0] - logits[0]).abs().max() > 0.01, "what the adapter writes differs from what the backbone does"


def test_gradients_flow_through_what_the_adapter_writes(model: MPlus, bank: ChunkBank) -> None:
    """Its first layers change an answer by what they write alone, since the prompt's own rows are held fixed."""
    sample = Sample((0, 1), tuple(b"Some words"), 4)

    def gradients(write_from: int | None) -> dict[str, torch.Tensor]:
        reader = Reader(model.weights, bank, by_chance(model), write_from=write_from)
        reader.loss([sample]).sum().backward()
        return {n: leaf.grad.clone() for n, leaf in reader.parameters().items() if leaf.grad is not None}

    frozen, written = gradients(None), gradients(0)
    name = "0.mlp.down_proj.up"
    assert not torch.allclose(frozen[name], written[name])


def test_a_bank_of_one_layer_is_enough_where_the_adapter_writes(model: MPlus, text: str) -> None:
    kept = ChunkBank(model.weights, model.tokenizer, TINY, only_layer=1)
    kept.add([text[:90]])
    whole = ChunkBank(model.weights, model.tokenizer, TINY)
    whole.add([text[:90]])
    sample = Sample(tuple(kept.chunks_of[0]), tuple(b"Some words"), 4)
    losses = [Reader(model.weights, one, by_chance(model), write_from=1).loss([sample]) for one in (kept, whole)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_prompts_that_begin_alike_cost_once_what_they_share(model_type: str) -> None:
    """Losses and gradients are those of each prompt alone; layers that are called as they are compute them so."""
    model = tiny_model(model_type=model_type)
    empty = ChunkBank(model.weights, model.tokenizer, TINY)
    shared, other = "Box seven is violet. ", "The gate is shut. "
    asked = [(shared, "Which box? Seven.", 9), (shared, "Which colour? Violet", 3), (shared, "Which?", 2)]
    asked += [(other, "What is shut?", 4), (other, "Whatever is it now", 6)]
    samples = [
        Sample((), tuple((begin + rest).encode()), len(begin) + target, memory=1 + (begin == other))
        for begin, rest, target in asked
    ]
    samples.append(Sample((), tuple(b"Alone"), 2))
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for batch in (samples, [replace(sample, memory=0) for sample in samples]):
        reader = Reader(model.weights, empty, by_chance(model))
        losses = torch.cat([reader.loss([s]) for s in batch]) if batch is not samples else reader.loss(batch)
        losses.sum().backward()
        found.append((losses.detach(), {n: p.grad for n, p in reader.parameters().items() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=1e-4)
    assert found[0][1].keys() == found[1][1].keys() and found[0][1]
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], atol=1e-3, rtol=1e-3)


def test_distilling_an_adapter_that_changes_nothing_costs_nothing_without_memory(model: MPlus, bank: ChunkBank) -> None:
    reader = Reader(model.weights, bank, new_adapter(model.weights, ReaderSettings(rank=2)))
    assert float(reader.loss([Sample((), tuple(b"Some words"), 4, distil=True)])[0].detach()) == pytest.approx(
        0, abs=1e-5
    )
    assert float(reader.loss([Sample((0,), tuple(b"Some words"), 4, distil=True)])[0].detach()) > 1e-4


def test_clean_reading_teaches_what_the_adapter_did_with_those_chunks_alone(model: MPlus, bank: ChunkBank) -> None:
    began = new_adapter(model.weights, ReaderSettings(rank=2))
    generator = torch.Generator().manual_seed(0)
    for name, lora in began.items():
        began[name] = replace(lora, up=torch.randn(lora.up.shape, generator=generator) * 0.1)
    reader = Reader(model.weights, bank, began)
    ids, mine, other = tuple(b"Some words"), (0,), (1,)
    same, among = Sample(mine, ids, 4, clean=mine), Sample((*other, *mine), ids, 4, clean=mine)
    plain = Sample(mine, ids, 4)
    before = reader.loss([same, among, plain]).detach()
    assert float(before[0]) == pytest.approx(0, abs=1e-4)
    assert float(before[1]) > 1e-4
    torch.testing.assert_close(before[2:], reader.loss([plain]).detach())
    with torch.no_grad():
        for leaf in reader.parameters().values():
            leaf.mul_(1.5)
    assert float(reader.loss([same])[0].detach()) > 1e-4, "the teacher stays as it was"


def test_tokens_of_the_answer_count_more_than_the_sentence_around_it(model: MPlus, bank: ChunkBank) -> None:
    prompt = [{"role": "user", "content": "Who?"}]
    made = encode_sample(model.tokenizer, AsRead([0]), prompt, "It is Ann, Annie.", stressed=["ann", "absent"])
    target = made.input_ids[made.target :]
    weighed = [token for token, weight in zip(target, made.weights, strict=True) if weight == STRESS]
    assert model.tokenizer.decode(weighed) == " Ann", "the whole word, once, with the space before it"
    assert not encode_sample(model.tokenizer, AsRead([0]), prompt, "It is Ann.", stressed=["Bo"]).weights
    reader = Reader(model.weights, bank, new_adapter(model.weights, ReaderSettings(rank=2)))
    with torch.no_grad():
        logits = reader._logits([made], reader.backbone, memory=True)[0]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(target), reduction="none")
        weights = torch.tensor(made.weights)
        torch.testing.assert_close(reader.loss([made])[0], (each * weights).sum() / weights.sum())


def test_training_lowers_the_loss_and_resumes(model: MPlus, bank: ChunkBank, tmp_path: Path) -> None:
    sample = encode_sample(model.tokenizer, AsRead([0]), [{"role": "user", "content": "Who?"}], "Ann.")

    class Source:
        def draw(self, rng: random.Random, count: int) -> list[Sample]:
            return [sample] * count

    settings = ReaderSettings(steps=12, batch=2, rank=2, warmup=1, decay=1, learning_rate=1e-2, dropout=0.0)

    def trained(steps: int, folder: Path) -> Reader:
        reader = Reader(model.weights, bank, new_adapter(model.weights, settings))
        task = ReaderTask(reader, Source(), settings, TrainedParts())
        task.steps = steps
        train(task, Accelerator(cpu=True), folder, Log(tmp_path / "log.jsonl"), save_every=6, log_every=6)
        return reader

    before = float(Reader(model.weights, bank, new_adapter(model.weights, settings)).loss([sample])[0].detach())
    once = trained(12, tmp_path / "once")
    assert float(once.loss([sample])[0].detach()) < before / 2
    trained(6, tmp_path / "twice")
    resumed = trained(12, tmp_path / "twice")
    for a, b in zip(once.parameters().values(), resumed.parameters().values(), strict=True):
        assert torch.equal(a, b)


def test_generated_people_never_contradict_themselves_and_splits_share_no_values() -> None:
    train = [persona(random.Random(n), "train", 8, updated=0.5) for n in range(60)]
    dev = [persona(random.Random(n), "dev", 8, updated=0.5) for n in range(60)]
    for person in train + dev:
        kinds = [told.fact.kind for told in person]
        assert len(kinds) == len(set(kinds))
        for told in person:
            assert told.fact.answer.lower() in told.statements[-1].lower()
            assert told.fact.answer.lower() in told.fact.reply.lower()
            if told.earlier is not None:
                assert told.earlier.answer != told.fact.answer
    names = [{t.fact.answer for p in people for t in p if t.fact.kind == "name"} for people in (train, dev)]
    assert names[0] and names[1] and not names[0] & names[1]


def test_training_lays_chunks_out_as_a_read_does(model: MPlus) -> None:
    bank = ChunkBank(model.weights, model.tokenizer, TINY)
    bank.add(["Short."] * 2 + ["Long enough for three chunks of this memory. " * 2] + ["Short."])
    recall = BankRecall(bank, model.weights.scorers["late"], 1)
    assert bank.owner == [0, 1, 2, 2, 2, 3]
    written = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.9, 4: 0.9, 5: 0.3}  # the long one last
    relevance = torch.tensor([0.9, 0.6, 0.7, 1.0, 0.65, 0.1])
    assert recall.laid_out([3, 2, 4, 0, 1], written, relevance) == [0, 1, 2, 3, 4], "the best with its neighbours"
    relevance = torch.tensor([1.0, 0.5, -0.5, -0.5, -0.5, 0.0])
    assert recall.laid_out([0, 1, 5], written, relevance) == [5, 1, 0], "the best alone"
    relevance[1] = 0.9
    assert recall.laid_out([0, 1, 5], written, relevance) == [5, 0, 1], "before what is newer and as relevant"
    relevance[5] = 0.9
    assert recall.laid_out([0, 1, 5], written, relevance) == [5, 0, 1], "the newest such"
    assert recall.laid_out([0], written, relevance) == [0] and recall.laid_out([], written, relevance) == []


def test_training_turns_a_text_as_a_read_does(text: str) -> None:
    """Of a memory that holds one text: the same tokens in the same order, some of them twice."""
    layout = {"chunk_tokens": 96, "short_term_tokens": 640, "recalled_tokens": 640, "best_sentence_times": 2}
    config = MemoryConfig(**(TINY.model_dump() | layout))
    model = tiny_model(memory=config)
    text, question = text[:400], "Which box is blue?"
    bank = ChunkBank(model.weights, model.tokenizer, config)
    bank.add([text])
    recall = BankRecall(bank, model.weights.scorers["late"], model.weights.recall_layer)
    chunks = bank.chunks_of[0]
    found = recall.as_read(question, chunks, dict.fromkeys(chunks, 0.0), recall.relevance(question))
    memory = model.new_memory()
    model.write(memory, text)
    (chosen,) = prefill(model.weights, [model.read_request(memory, question)]).reading.recalled[0]
    assert chosen.order is not None
    assert list(found.chunks) == chunks and list(found.order) == chosen.order.tolist()
    assert len(set(found.order)) < len(found.order) and list(found.order) != sorted(found.order)


def test_a_sample_is_read_in_its_order(model: MPlus, bank: ChunkBank) -> None:
    reader = Reader(model.weights, bank, new_adapter(model.weights, ReaderSettings(rank=2)))
    ids, first, second = tuple(b"Some words"), len(bank.input_ids[0]), len(bank.input_ids[1])
    places = range(first + second)
    turned = Sample((0, 1), ids, 4, order=(*places[first:], *places[:first]))
    again = Sample((0, 1), ids, 4, order=(*places, *places[first:]))
    expected = reader.loss([Sample((1, 0), ids, 4), Sample((0, 1, 1), ids, 4)]).detach()
    torch.testing.assert_close(reader.loss([turned, again]).detach(), expected)


def test_batches_hold_what_was_drawn_and_can_be_drawn_again(model: MPlus) -> None:
    class Source:
        def draw(self, rng: random.Random, count: int) -> list[Sample]:
            return [Sample((), tuple(range(rng.randint(2, 90))), 1) for _ in range(count)]

    settings = ReaderSettings(batch=3)
    pools = pooled_batches(Source(), settings, 0)
    drawn = Source().draw(random.Random(0), settings.batch * POOLED_BATCHES)
    assert sorted(len(s.input_ids) for pool in pools for s in pool) == sorted(len(s.input_ids) for s in drawn)
    assert pools == pooled_batches(Source(), settings, 0)


def test_ordinary_requests_are_answered_by_the_backbone_and_kept(model: MPlus, tmp_path: Path) -> None:
    requests = general_requests(random.Random(0), 30)
    assert len(set(requests)) == 30
    kept = tmp_path / "requests.json"
    found = answered(model, requests[:3], kept=kept, batch=2, max_new_tokens=3)
    for asked, reply in found:
        alone = model.generate(model.new_memory(), [{"role": "user", "content": asked}], max_new_tokens=3)
        assert reply == alone.text.strip()
    said = json.loads(kept.read_text("utf-8"))
    kept.write_text(json.dumps(said | {requests[0]: "as kept"}), "utf-8")
    again = answered(model, requests[:4], kept=kept, max_new_tokens=3)
    assert again[0] == (requests[0], "as kept")
    assert len(json.loads(kept.read_text("utf-8"))) == 4
