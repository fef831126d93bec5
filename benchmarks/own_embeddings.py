"""Recall by an embedder beside late interaction: is the right text first, and the chunk that answers among the first?

    pip install 'mplus-memory[bench]'
    python benchmarks/own_embeddings.py dev.json.gz --distractors train.json.gz [--tokens 45000] [--questions 200]

The data is SQuAD JSON, or JSON lines with ``text``, ``question`` and ``answers``. The embedder is all-MiniLM-L6-v2.
Every chunk is scored as a read scores it. Two ways to embed a chunk: alone (what M+ does), and behind the last 32
tokens of the chunk that it continues. "with neighbours" averages a chunk's cosine with the best of its neighbours', as
late interaction does. "texts" is what RAG does: whole texts, one vector each.
"""

import argparse
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import report
import torch
from torch import Tensor

import mplus
from mplus.evaluation.data_files import passages, read_records
from mplus.evaluation.datasets.passages import squad
from mplus.evaluation.passage_search import MiniLM
from mplus.inert import encode_inert
from mplus.memory.vectors import ChunkVectors
from mplus.recall.fused_scorer import fused
from mplus.recall.scorer import Scorer, Scores, Shortlist, with_neighbours
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank

BEFORE = {"alone": 0, "behind 32 tokens": 32}
WEIGHTS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Asked:
    """A question, and what answers it."""

    text: str
    gold: int
    """Number of the text that answers."""
    answers: Sequence[str]


@dataclass(frozen=True)
class Ranks:
    """Of each question: at which rank the right text and the chunk with the answer stand, from 0."""

    texts: list[int]
    chunks: list[int]

    def row(self) -> dict[str, float]:
        def share(ranks: Sequence[int], within: int) -> float:
            return round(sum(rank < within for rank in ranks) / max(len(ranks), 1), 3)

        return {
            "text first": share(self.texts, 1),
            "text in three": share(self.texts, 3),
            "chunk first": share(self.chunks, 1),
            "chunk in four": share(self.chunks, 4),
        }


def read(path: Path, questions: int, rng: random.Random) -> tuple[list[Asked], list[str]]:
    """Questions, and the texts that they are about."""
    if ".jsonl" in path.suffixes:
        rows = [row for row in read_records(path) if row.get("question")]
        rows = rng.sample(rows, min(questions, len(rows)))
        texts = list(dict.fromkeys(str(row["text"]) for row in rows))
        return [Asked(row["question"], texts.index(row["text"]), row.get("answers") or ()) for row in rows], texts
    task = squad(path, questions, 0, rng)
    names = list(task.contexts)
    asked = [Asked(q.text, names.index(q.gold[0]), q.answers) for q in task.questions]
    return asked, list(task.contexts.values())


def filled_up(model: mplus.MPlus, texts: Sequence[str], more: Sequence[str], tokens: int) -> list[str]:
    """The texts, and further ones until there are so many tokens."""
    found, total = list(texts), sum(len(encode_inert(model.tokenizer, text)) for text in texts)
    for text in dict.fromkeys(more):
        if total >= tokens:
            break
        if text not in texts:
            found.append(text)
            total += len(encode_inert(model.tokenizer, text))
    return found


def ranks(bank: ChunkBank, asked: Sequence[Asked], scores: Sequence[Tensor]) -> Ranks:
    """Where the right text and the chunk with the answer stand. A text has the score of its best chunk."""
    owner = torch.tensor(bank.owner)
    found = Ranks([], [])
    for question, relevance in zip(asked, scores, strict=True):
        best = torch.full((len(bank.chunks_of),), float("-inf")).scatter_reduce_(0, owner, relevance, "amax")
        found.texts.append(int((best > best[question.gold]).sum()))
        right = [
            chunk
            for chunk in bank.chunks_of[question.gold]
            if any(answer.lower() in bank.texts[chunk].lower() for answer in question.answers)
        ]
        if right:
            found.chunks.append(int((relevance > relevance[right].max()).sum()))
    return found


def embedded(bank: ChunkBank, embedder: mplus.Embedder, before: int) -> ChunkVectors:
    """A vector for each chunk, behind the end of the chunk that it continues."""
    texts: list[str] = []
    for chunk, ids in enumerate(bank.input_ids):
        continues = chunk > 0 and bank.owner[chunk - 1] == bank.owner[chunk]
        tail = bank.input_ids[chunk - 1][-before:] if continues and before else []
        texts.append(bank.weights.text_of([*tail, *ids]))
    return ChunkVectors(embedder.name).append(torch.arange(len(texts)), embedder.passages(texts), "int8")


def measured(
    model: mplus.MPlus, bank: ChunkBank, asked: Sequence[Asked], embedder: mplus.Embedder
) -> Mapping[str, dict[str, float]]:
    """The ranks of every way of scoring."""
    weights, layer = model.weights, model.weights.recall_layer
    late = BankRecall(bank, weights.scorers["late"], layer)
    vectors = [embedder.question(question.text) for question in asked]
    questions = [replace(late._question(q.text), vector=v) for q, v in zip(asked, vectors, strict=True)]
    rows: dict[str, dict[str, float]] = {}

    def scored(scorer: Scorer, made: ChunkVectors) -> list[Scores]:
        shortlist = Shortlist(replace(late._candidates, vectors=made))
        return [scorer.scores(question, shortlist, bank.config) for question in questions]

    def note(name: str, found: Iterable[Tensor]) -> None:
        rows[name] = ranks(bank, asked, list(found)).row()
        print(f"{name:56s} {rows[name]}", flush=True)

    def beside(scores: Scores) -> Scores:
        relevance = with_neighbours(scores.relevance[:, None], late._candidates.goes_on)[:, 0]
        return Scores(relevance, relevance)

    first = scored(weights.scorers["late"], ChunkVectors())
    note("late interaction and words", (one.relevance for one in first))
    for name, before in BEFORE.items():
        second = scored(weights.scorers["embedding"], embedded(bank, embedder, before))
        for kind, found in ((name, second), (f"{name}, with neighbours", [beside(one) for one in second])):
            pairs = list(zip(first, found, strict=True))
            note(f"embedding, chunk {kind}", (one.relevance for one in found))
            note(f"both, chunk {kind}, by reciprocal ranks", (reciprocal(a) + reciprocal(b) for a, b in pairs))
            for weight in WEIGHTS:
                note(f"both, chunk {kind}, weight {weight}", (fused(a, b, weight).relevance for a, b in pairs))
    return rows


def reciprocal(scores: Scores) -> Tensor:
    """What each chunk's rank is worth in reciprocal rank fusion, with its usual constant."""
    return 1 / (60 + scores.relevance.argsort(descending=True).argsort().float())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--distractors", type=Path, help="further texts, as mplus evaluate takes them")
    parser.add_argument("--tokens", type=int, default=45_000)
    parser.add_argument("--questions", type=int, default=200)
    arguments: argparse.Namespace = parser.parse_args()
    rng = random.Random(7)
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    minilm = MiniLM([])
    embedder = mplus.Embedder(minilm.embed, name="all-MiniLM-L6-v2")
    asked, texts = read(arguments.data, arguments.questions, rng)
    more = list(passages(arguments.distractors)) if arguments.distractors else []
    rng.shuffle(more)
    texts = filled_up(model, texts, more, arguments.tokens)
    bank = ChunkBank(model.weights, model.tokenizer, model.memory_config, only_layer=model.weights.recall_layer)
    bank.add(texts, progress="texts")
    whole = embedder.passages(texts) @ torch.stack([embedder.question(question.text) for question in asked]).T
    alone = [int((row > row[question.gold]).sum()) for question, row in zip(asked, whole.T, strict=True)]
    rows = {"texts, embedding": Ranks(alone, []).row()}
    print(f"{len(asked)} questions, {len(texts)} texts, {len(bank.owner)} chunks", rows)
    rows |= measured(model, bank, asked, embedder)
    found = {"questions": len(asked), "chunks": len(bank.owner), "ways": rows}
    report.write(f"own_embeddings-{arguments.data.name.partition('.')[0]}", found, arguments.output)


if __name__ == "__main__":
    main()
