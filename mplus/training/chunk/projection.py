"""The retriever's projection: contrastive, over whole chunks, with hard negatives.

Questions and chunks are scored by late interaction as recall will score them, a chunk with its neighbours. Negatives
are the other questions' chunks, other chunks of the same article or topic, and what recall wrongly picks.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from mplus.recall.late_interaction import COUNTS_ONE, LateInteraction
from mplus.recall.scorer import with_neighbours
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.questions import Question


@dataclass(frozen=True)
class ProjectionSettings:
    """How long and how hard the projection is trained."""

    steps: int = 2400
    batch: int = 32
    hard: int = 2
    """Hard negatives per question."""
    size: int = 96
    """Numbers of a retrieval key."""
    learning_rate: float = 1e-3
    weights_rate: float = 0.3
    """Learning rate of the weights of a question's rows, as a share of the projections'."""
    temperature: float = 0.02
    teacher_temperature: float = 0.05
    """Of the teacher's cosines."""
    refresh: int = 500
    """Steps between searches for what recall wrongly picks."""
    searched: int = 200
    """Questions of a lesson that are searched for then."""
    seed: int = 0


@runtime_checkable
class Teacher(Protocol):
    """A sentence embedder whose order of passages is learnt beside the right answers."""

    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts size"]:
        """Unit-length embeddings."""
        ...


@dataclass(frozen=True)
class Lesson:
    """Texts, and questions that are asked about them together.

    Attributes:
        bank: Encoded texts.
        questions: Each about texts of the bank.
        groups: Per text, what it belongs to, such as its article: hard negatives come from the same.
        private: Texts of people who never share a memory: none is a negative for another's question.
        whole: What is looked for is the text, wherever in it the answer stands: for texts that are much alike, and
            questions that say which one is meant.
    """

    bank: ChunkBank
    questions: Sequence[Question]
    groups: Sequence[int]
    private: frozenset[int] = frozenset()
    whole: bool = False


class Trained(NamedTuple):
    """What is trained: both projections, and the vector that weighs a question's rows."""

    query: Tensor
    key: Tensor
    weights: Tensor


def train_projection(
    lessons: Sequence[Lesson],
    layer: int,
    base: LateInteraction,
    settings: ProjectionSettings,
    teacher: Teacher | None = None,
) -> LateInteraction:
    """A late-interaction scorer with trained projections, and weights of a question's rows.

    Args:
        lessons: What is learnt from; each step asks questions of one of them, drawn at random.
        layer: Whose states are scored.
        base: Training-free scorer, for its centring.
        settings: Steps, batch and so on.
        teacher: A sentence embedder: how it ranks the chunks of a step is learnt as well.
    """
    rng = random.Random(settings.seed)
    torch.manual_seed(settings.seed)
    learnt = [LessonRows(lesson, layer, base, teacher) for lesson in lessons]
    hidden = base.mean.shape[1]
    query = torch.nn.Parameter(torch.randn(settings.size, hidden) / hidden**0.5)
    trained = Trained(query, torch.nn.Parameter(query.detach().clone()), torch.nn.Parameter(torch.zeros(hidden)))
    rates = [settings.learning_rate, settings.weights_rate * settings.learning_rate]
    optimizer = torch.optim.AdamW([{"params": trained[:2]}, {"params": trained[2:]}], lr=rates[0], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=settings.steps, pct_start=0.05)
    for step in range(settings.steps):
        if step and step % settings.refresh == 0:
            for lesson in learnt:
                lesson.search(trained, rng, settings.searched)
        lesson = rng.choice(learnt)
        loss = lesson.loss(trained, lesson.draw(rng, settings), settings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"projection step {step}: loss {loss.item():.3f}", flush=True)
    return LateInteraction(
        base.mean,
        base.deviation,
        query_projection=trained.query.detach(),
        key_projection=trained.key.detach(),
        query_weights=trained.weights.detach(),
    ).requires_grad_(False)


class Batch(NamedTuple):
    """Questions, and the chunks each is scored against: first the right one of each, then hard negatives."""

    questions: list[int]
    pool: list[int]


class LessonRows:
    """A lesson with its rows in memory, and what recall wrongly picks in it."""

    def __init__(self, lesson: Lesson, layer: int, base: LateInteraction, teacher: Teacher | None = None) -> None:
        bank = self._bank = lesson.bank
        self._lesson = lesson
        mean, deviation = base.mean[layer], base.deviation[layer]
        self._chunks = PaddedRows((bank.normed(c, layer) - mean) / deviation for c in range(len(bank.input_ids)))
        asked = bank.all_asked([question.text for question in lesson.questions], layer)
        self._asked = PaddedRows((rows.float() - mean) / deviation for rows in asked)
        self._goes_on = bank.goes_on
        self._gold = [bank.chunks_in(q.passages) if lesson.whole else bank.gold_chunks(q) for q in lesson.questions]
        self._usable = [number for number, gold in enumerate(self._gold) if gold]
        self._of_group = bank.by_group(lesson.groups)
        self._wrong: dict[int, list[int]] = {}
        self._taught: tuple[Tensor, Tensor] | None = None
        """The teacher's embeddings of questions and of chunks."""
        if teacher is not None:
            asked = torch.from_numpy(teacher.embed([question.text for question in lesson.questions]))
            self._taught = asked, torch.from_numpy(teacher.embed(bank.texts))
        print(f"projection: {len(self._usable)} questions, {len(bank.input_ids)} chunks", flush=True)

    def draw(self, rng: random.Random, settings: ProjectionSettings) -> Batch:
        """Some questions with their chunks."""
        wrong = list(self._wrong)
        questions = [rng.choice(wrong if wrong and rng.random() < 0.3 else self._usable) for _ in range(settings.batch)]
        pool = [rng.choice(self._gold[question]) for question in questions]
        for question, right in zip(questions, list(pool), strict=True):
            for _ in range(settings.hard):
                hard = self._wrong.get(question) if rng.random() < 0.5 else None
                pool.append(rng.choice(hard or self._of_group[self._group(right)]))
        return Batch(questions, pool)

    def loss(self, trained: Trained, batch: Batch, settings: ProjectionSettings) -> Tensor:
        """That of the right chunks, and how far the order of all is from the teacher's, where there is one."""
        scores = (self.scores(trained, batch) / settings.temperature).masked_fill(self.barred(batch), float("-inf"))
        loss = functional.cross_entropy(scores, torch.arange(len(batch.questions)))
        if self._taught is None:
            return loss
        asked, chunks = self._taught
        cosines = asked[batch.questions] @ chunks[batch.pool].T / settings.teacher_temperature
        wanted = cosines.masked_fill(scores.isneginf(), float("-inf")).log_softmax(dim=-1)
        apart = (wanted.exp() * (wanted - scores.log_softmax(dim=-1))).masked_fill(scores.isneginf(), 0.0)
        return loss + apart.sum(dim=-1).mean()

    def barred(self, batch: Batch) -> Tensor:
        """[question, chunk] that are no negatives: the chunk answers the question too, or is somebody else's."""
        barred = torch.zeros(len(batch.questions), len(batch.pool), dtype=torch.bool)
        for row, question in enumerate(batch.questions):
            home = self._lesson.groups[self._lesson.questions[question].passages[0]]
            gold = set(self._gold[question])
            for column, chunk in enumerate(batch.pool):
                private = self._bank.owner[chunk] in self._lesson.private and self._group(chunk) != home
                barred[row, column] = column != row and (chunk in gold or private)
        return barred

    def scores(self, trained: Trained, batch: Batch) -> Tensor:
        """[question, chunk]: weighted mean over question rows of the best cosine in the chunk and its neighbours."""
        chunks = torch.tensor(batch.pool)
        around = (chunks[:, None] + torch.arange(-1, 2)).clamp(0, len(self._goes_on) - 1).unique()
        asked = self._asked.mask[batch.questions]
        asked = asked[:, : int(asked.sum(dim=1).max())]
        rows = self._asked.rows[batch.questions, : asked.shape[1]]
        counts = functional.softplus(rows.float() @ trained.weights + COUNTS_ONE) * asked
        keys = _project(trained.key, self._chunks.rows[around])
        best = _best(_project(trained.query, rows), keys, self._chunks.mask[around])
        best = with_neighbours(best.flatten(1), self._goes_on_among(around)).view_as(best)
        best = best[torch.searchsorted(around, chunks)]
        # Rows that match every chunk of the batch tell nothing apart; recall makes the same correction.
        best = best - best.mean(dim=0, keepdim=True)
        return ((best * counts).sum(dim=-1) / counts.sum(dim=-1)).T

    @torch.inference_mode()
    def search(self, trained: Trained, rng: random.Random, count: int) -> None:
        """Look for what recall wrongly picks for some questions that may be asked of all texts."""
        shared = [n for n in self._usable if self._lesson.questions[n].passages[0] not in self._lesson.private]
        keys = torch.cat([_project(trained.key, rows).bfloat16() for rows in self._chunks.rows.split(1024)])
        hits = 0
        asked = rng.sample(shared, min(count, len(shared)))
        self._wrong = {}
        for question in asked:
            rows = self._asked.rows[question][self._asked.mask[question]]
            counts = functional.softplus(rows.float() @ trained.weights + COUNTS_ONE)
            queries = _project(trained.query, rows)
            best = with_neighbours(_best(queries[None], keys, self._chunks.mask)[:, 0], self._goes_on)
            found = (best @ (counts / counts.sum())).topk(min(12, len(best))).indices.tolist()
            hits += found[0] in self._gold[question]
            if found[0] not in self._gold[question] or self._lesson.whole:
                self._wrong[question] = [c for c in found if c not in self._gold[question]][:8]
        self._wrong = {question: wrong for question, wrong in self._wrong.items() if wrong}
        print(f"projection: right chunk first for {hits / max(len(asked), 1):.3f} of train", flush=True)

    def _group(self, chunk: int) -> int:
        return self._lesson.groups[self._bank.owner[chunk]]

    def _goes_on_among(self, chunks: Tensor) -> Tensor:
        """Which of some chunks, in order, go on where the one before them among these ends."""
        follows = torch.cat([chunks.new_zeros(1, dtype=torch.bool), chunks[1:] == chunks[:-1] + 1])
        return self._goes_on[chunks] & follows


class PaddedRows:
    """Many short runs of rows as one padded tensor and its mask."""

    def __init__(self, runs: Iterable[Tensor]) -> None:
        known = [run.bfloat16() for run in runs]
        longest = max(len(run) for run in known)
        self.rows = torch.zeros(len(known), longest, known[0].shape[1], dtype=torch.bfloat16)
        self.mask = torch.zeros(len(known), longest, dtype=torch.bool)
        for number, run in enumerate(known):
            self.rows[number, : len(run)] = run
            self.mask[number, : len(run)] = True


def _project(projection: Tensor, rows: Tensor) -> Tensor:
    return functional.normalize(functional.linear(rows.float(), projection), dim=-1)


def _best(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """[chunk, question, row]: the best cosine of every question row in each chunk, some chunks at a time."""
    found: list[Tensor] = []
    for some, inside in zip(keys.split(1024), mask.split(1024), strict=True):
        cosine = (some.float().flatten(0, 1) @ queries.flatten(0, 1).T).unflatten(0, inside.shape)
        # Through max a gradient reaches one row; amax would look for ties, at twice the cost.
        best = cosine.masked_fill(~inside[:, :, None], -1.0).max(dim=1).values
        found.append(best.unflatten(1, queries.shape[:2]))
    return torch.cat(found)
