"""The recipe of the default model, start to end: bank, projection, read adapter, trained parts.

    python -m mplus.training.recipe --squad train.json.gz --dialogues train.jsonl.gz --out runs/smol-135m

Resumes where it was stopped. On two CPU cores it takes about an hour and a half (2.5 to 3.6 s a step of the adapter).
"""

import argparse
import random
from dataclasses import replace
from pathlib import Path

import torch

from mplus.checkpoint.parts import TrainedParts, write_parts
from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.retriever import LateInteraction
from mplus.training.conversations import alike_conversations, chat_messages, dialogue_questions
from mplus.training.data import ChunkBank, Question, dialogues, personas, squad
from mplus.training.projection import Lesson, ProjectionSettings, train_projection
from mplus.training.reader import Reader, ReaderSettings, new_adapter, train_reader
from mplus.training.requests import answered_requests
from mplus.training.samples import Samples


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m", help="backbone: built-in name, folder or repository")
    parser.add_argument("--squad", type=Path, required=True, help="SQuAD JSON to train on")
    parser.add_argument("--dialogues", type=Path, required=True, help="conversations, one JSON a line")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and trained parts")
    parser.add_argument("--layer", type=int, default=4, help="layer whose states recall scores")
    parser.add_argument("--num-dialogues", type=int, default=100)
    parser.add_argument("--num-people", type=int, default=400)
    parser.add_argument("--projection-steps", type=int, default=2400)
    parser.add_argument("--reader-steps", type=int, default=900, help="0: the projection alone")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of the read adapter")
    parser.add_argument("--decay", type=int, default=600, help="last steps, in which the rate falls")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the read adapter's inputs")
    parser.add_argument("--go-on", action="store_true", help="begin with the read adapter that the model has")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(**vars(arguments))


def run(
    *,
    model: str,
    squad: Path,
    dialogues: Path,
    out: Path,
    layer: int,
    num_dialogues: int,
    num_people: int,
    projection_steps: int,
    reader_steps: int,
    seed: int,
    learning_rate: float = 1e-3,
    decay: int = 600,
    dropout: float = 0.1,
    go_on: bool = False,
) -> None:
    """Train the parts of a model and save them in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    plain = MPlus.from_pretrained(model, dtype="bfloat16")
    only_layer = None if reader_steps else layer
    states = out / ("states.bin" if reader_steps else "layer.bin")
    made = make_bank(plain, squad, dialogues, num_dialogues, num_people, seed, states, only_layer=only_layer)
    projection = out / "projection.pt"
    base = plain.weights.scorers["late"]
    assert isinstance(base, LateInteraction)
    if projection.exists():
        saved = torch.load(projection, weights_only=True)
        scorer = LateInteraction(base.mean, base.deviation, **saved).requires_grad_(False)
    else:
        settings = ProjectionSettings(steps=projection_steps, seed=seed)
        private = frozenset(text for _, texts in made.people for text in texts)
        asked = [*made.questions, *(q for qs, _ in made.people for q in qs)]
        lessons = [
            Lesson(made.bank, asked, made.groups, private),
            alike_conversations(plain, dialogues, layer, random.Random(f"{seed}/alike")),
        ]
        scorer = train_projection(lessons, layer, base.float(), settings)
        saved = {"query_projection": scorer.query_projection, "key_projection": scorer.key_projection}
        torch.save({name: p.detach() for name, p in saved.items() if p is not None}, projection)
    if not reader_steps:
        return
    settings = ReaderSettings(steps=reader_steps, seed=seed, learning_rate=learning_rate, decay=decay, dropout=dropout)
    known = plain._parts.read_adapter if go_on else None
    adapter = {name: part.in_full() for name, part in known.items()} if known else new_adapter(plain.weights, settings)
    reader = Reader(plain.weights, made.bank, adapter)
    samples = Samples(
        made.bank,
        plain.tokenizer,
        scorer,
        layer,
        made.questions,
        made.passages,
        made.conversations,
        made.dialogue_questions,
        made.people,
        made.chats,
        made.requests,
    )

    def save() -> None:
        parts = TrainedParts(recall_layer=layer, read_adapter=reader.adapter(), late=scorer)
        write_parts(out, replace(parts, memory=plain.memory_config))

    train_reader(reader, samples, settings, out, save)
    save()


class Made:
    """A bank and everything that is known of its texts."""

    def __init__(self, bank: ChunkBank) -> None:
        self.bank = bank
        self.questions: list[Question] = []
        self.passages: list[int] = []
        self.conversations: list[int] = []
        self.dialogue_questions: list[Question] = []
        self.people: list[tuple[list[Question], list[int]]] = []
        self.groups: list[int] = []
        """Per text, what it belongs to: an article, a conversation, a person."""
        self.chats: list[list[dict[str, str]]] = []
        self.requests: list[tuple[str, str]] = []


def make_bank(
    model: MPlus,
    squad_file: Path,
    dialogue_file: Path,
    num_dialogues: int,
    num_people: int,
    seed: int,
    states: Path | None = None,
    *,
    only_layer: int | None = None,
) -> Made:
    """Encode everything that is trained on; of one layer alone for a projection."""
    rng = random.Random(seed)
    made = Made(ChunkBank(model.weights, model.tokenizer, MemoryConfig(), states, only_layer=only_layer))
    texts, made.questions, made.groups = squad(squad_file)
    made.passages = made.bank.add(texts, progress="passages")
    ids, talks = dialogues(dialogue_file, num_dialogues, rng)
    made.conversations = made.bank.add(talks, progress="conversations")
    made.groups += [max(made.groups) + 1 + n for n in range(len(talks))]
    made.dialogue_questions = dialogue_questions(dialogue_file, ids, made.conversations[0], rng)
    messages, questions, owned = personas(rng, "train", num_people)
    first = made.bank.add(messages, progress="messages")[0]
    group = max(made.groups) + 1
    for asked, mine in zip(questions, owned, strict=True):
        moved = [replace(q, passages=tuple(first + p for p in q.passages)) for q in asked]
        made.people.append((moved, [first + m for m in mine]))
        made.groups += [group] * len(mine)
        group += 1
    made.chats = chat_messages(dialogue_file, 2000, rng)
    made.requests = answered_requests(model, rng, 240)
    return made


if __name__ == "__main__":
    main()
