"""Training works: a tiny random model learns to remember, from chance to nine in ten.

"Key A lies in box 7 now." is asked for as "Where is a? Box ": to a random model A and a have nothing in common, so
both finding the note and reading it must be learnt. Training is the package's own; afterwards the model is
loaded from its folder and everything goes through its front door: notes are written, distractors push them out
of short-term memory into long-term memory, the question recalls one chunk, and the answer is generated.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mplus import MPlus
from mplus.checkpoint.parts import TrainedParts, write_parts
from mplus.config import MemoryConfig
from mplus.inert import encode_inert
from mplus.testing import tiny_model
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.chunk_run import late_interaction
from mplus.training.chunk.projection import Lesson, ProjectionSettings, train_projection
from mplus.training.chunk.questions import Question
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.sample import Sample
from mplus.training.loop import train
from mplus.training.run_folder import Log

# One chunk is recalled: who recalls the wrong note cannot answer.
LAYOUT = MemoryConfig(
    chunk_tokens=32,
    minimum_chunk_tokens=8,
    tokens_per_write=32,
    short_term_tokens=64,
    recalled_tokens=32,
    consolidate_every=2,
    lexical_weight=0.0,  # what is learned is to be seen
)
LAYER = 2
KEYS, BOXES = "ABCDEFGHIJKLMNOP", "0123456789"
CHANCE = 1 / len(BOXES)


def note(key: str, box: str) -> str:
    return f"Key {key} lies in box {box} now."


def question(key: str) -> str:
    return f"Where is {key.lower()}? Box "


def distractor(rng: random.Random) -> str:
    return f"At {rng.choice('ghijkl')} {rng.choice(BOXES)} the {rng.choice(['wind', 'rain', 'snow'])} came."


class Notes:
    """Notes and distractors in a bank, and samples: a note, some distractors, a question, the box."""

    def __init__(self, model: MPlus, seed: int) -> None:
        rng = random.Random(seed)
        self.tokenizer = model.tokenizer
        self.told = [(rng.choice(KEYS), rng.choice(BOXES)) for _ in range(200)]
        self.bank = ChunkBank(model.weights, model.tokenizer, LAYOUT)
        self.bank.add([note(*told) for told in self.told] + [distractor(rng) for _ in range(100)])
        by_key = {key: tuple(n for n, (k, _) in enumerate(self.told) if k == key) for key in KEYS}
        # Whatever names the key is relevant: what was said of it at different times are not each other's negatives.
        self.questions = [Question(question(k), (f"Key {k} ",), by_key[k], b) for k, b in self.told]

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        return [self._sample(rng) for _ in range(count)]

    def _sample(self, rng: random.Random) -> Sample:
        number = rng.randrange(len(self.told))
        key, box = self.told[number]
        others = [rng.randrange(len(self.told), len(self.bank.chunks_of)) for _ in range(rng.randint(1, 4))]
        chunks = tuple(self.bank.chunks_of[text][0] for text in (*others, number))  # as a read lays them out
        asked = encode_inert(self.tokenizer, question(key))
        return Sample(chunks, (*asked, *encode_inert(self.tokenizer, box)), len(asked))


def answers(folder: Path) -> tuple[float, float]:
    """Share of questions answered, and of notes recalled, in memories that training never saw."""
    model, rng = MPlus.from_pretrained(folder), random.Random("asked")
    right = recalled = 0
    for _ in range(4):
        memory = model.new_memory()
        boxes = {key: rng.choice(BOXES) for key in KEYS}
        for key, box in boxes.items():
            model.write(memory, note(key, box), source=key)
        for number in range(16):
            model.write(memory, distractor(rng), source=f"distractor {number}")
        stats = memory.stats()
        assert max(stats.short_term.tokens) <= 64 < min(stats.long_term.tokens)
        asked = [question(key) for key in boxes]
        given = model.generate_batch([memory] * len(asked), asked, max_new_tokens=1)
        for (key, box), answer in zip(boxes.items(), given, strict=True):
            right += answer.text == box
            recalled += [s.source for s in answer.recalled if s.pool != "short_term"] == [key]
    return right / (4 * len(KEYS)), recalled / (4 * len(KEYS))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums over threads come out a little differently by their number, and training makes that large."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_random_model_learns_to_recall_and_to_read(tmp_path: Path) -> None:
    seed = 0
    model = tiny_model(seed, memory=LAYOUT)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    right, recalled = answers(folder)
    assert right < 2.5 * CHANCE
    assert recalled < 0.25

    notes = Notes(model, seed)
    projection = train_projection(
        [Lesson(notes.bank, notes.questions, range(len(notes.bank.chunks_of)))],
        LAYER,
        late_interaction(model, None),
        ProjectionSettings(steps=200, batch=16, size=32, learning_rate=1e-2, refresh=1000, seed=seed),
    )
    parts = TrainedParts(memory=LAYOUT, recall_layer=LAYER, late=projection)
    settings = ReaderSettings(steps=440, batch=16, learning_rate=5e-3, warmup=10, decay=240, dropout=0.0, seed=seed)
    reader = Reader(model.weights, notes.bank, new_adapter(model.weights, settings))
    task = ReaderTask(reader, notes, settings, parts)
    train(task, Accelerator(cpu=True), tmp_path / "run", Log(tmp_path / "log.jsonl"), save_every=1000, log_every=80)

    write_parts(folder, task.trained())
    right, recalled = answers(folder)
    assert recalled >= 0.9
    assert right >= 0.9
    # And it is the projection that finds the notes: the same reader without it knows nothing.
    write_parts(folder, replace(task.trained(), late=None))
    right, recalled = answers(folder)
    assert recalled < 0.25
    assert right < 3.5 * CHANCE
