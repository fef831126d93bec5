"""The retriever's projection: contrastive, over whole chunks, with hard negatives.

Questions and chunks are scored by late interaction exactly as recall will score them. Negatives are the
other questions' chunks, other chunks of the same article, and what recall wrongly picks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mplus.retriever import LateInteraction
from mplus.text import encode_inert
from mplus.training.data import ChunkBank, Question


@dataclass(frozen=True)
class ProjectionSettings:
    """How long and how hard the projection is trained."""

    steps: int = 1500
    batch: int = 32
    hard: int = 2
    """Hard negatives per question."""
    size: int = 96
    """Numbers of a retrieval key."""
    learning_rate: float = 1e-3
    temperature: float = 0.02
    refresh: int = 300
    """Steps between searches for what recall wrongly picks."""
    seed: int = 0


def gold_chunks(bank: ChunkBank, question: Question) -> list[int]:
    """The question's chunks that hold an answer word for word."""
    chunks = [c for text in question.passages for c in bank.chunks_of[text]]
    return [c for c in chunks if any(a.lower() in bank.texts[c].lower() for a in question.answers)]


class PaddedRows:
    """Many short runs of rows as one padded tensor and its mask."""

    def __init__(self, runs: Sequence[Tensor]) -> None:
        longest = max(len(run) for run in runs)
        self.rows = torch.zeros(len(runs), longest, runs[0].shape[1], dtype=torch.bfloat16)
        self.mask = torch.zeros(len(runs), longest, dtype=torch.bool)
        for number, run in enumerate(runs):
            self.rows[number, : len(run)] = run
            self.mask[number, : len(run)] = True


def question_rows(bank: ChunkBank, questions: Sequence[Question], layer: int) -> PaddedRows:
    """Normed states of questions read alone."""
    runs: list[Tensor] = []
    with torch.inference_mode():
        for question in questions:
            ids = torch.tensor(encode_inert(bank.tokenizer, question.text))
            states = bank.weights.backbone.plain_states(ids, layer)
            runs.append(bank.weights.norm(layer, states[-1], reading=False).float())
    return PaddedRows(runs)


def train_projection(
    bank: ChunkBank,
    questions: Sequence[Question],
    layer: int,
    base: LateInteraction,
    settings: ProjectionSettings,
    articles: Sequence[int],
    private: frozenset[int] = frozenset(),
) -> LateInteraction:
    """A late-interaction scorer with trained projections.

    Args:
        bank: Encoded texts; every question's passages are among them.
        questions: To learn from.
        layer: Whose states are scored.
        base: Training-free scorer, for its centring.
        settings: Steps, batch and so on.
        articles: Per text of the bank, what it belongs to; hard negatives come from the same.
        private: Texts of people who never share a memory: none is a negative for another's question.
    """
    rng = random.Random(settings.seed)
    torch.manual_seed(settings.seed)
    mean, deviation = base.mean[layer], base.deviation[layer]

    def standardised(runs: PaddedRows) -> PaddedRows:
        runs.rows = ((runs.rows.float() - mean) / deviation).bfloat16()
        return runs

    chunks = standardised(PaddedRows([bank.normed(c, layer) for c in range(len(bank.input_ids))]))
    asked = standardised(question_rows(bank, questions, layer))
    gold = [gold_chunks(bank, q) for q in questions]
    usable = [n for n, chunk in enumerate(gold) if chunk]
    print(f"projection: {len(usable)} questions, {len(bank.input_ids)} chunks", flush=True)

    hidden = mean.shape[0]
    query = torch.nn.Parameter(torch.randn(settings.size, hidden) / hidden**0.5)
    key = torch.nn.Parameter(query.detach().clone())
    optimizer = torch.optim.AdamW([query, key], lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.05
    )
    same: dict[int, list[int]] = {}
    for chunk, text in enumerate(bank.owner):
        same.setdefault(articles[text], []).append(chunk)
    wrong: dict[int, list[int]] = {}
    for step in range(settings.steps):
        if step and step % settings.refresh == 0:
            shared = [n for n in usable if questions[n].passages[0] not in private]
            wrong = _wrongly_picked(query, key, asked, chunks, gold, rng.sample(shared, min(1200, len(shared))))
        batch = [rng.choice(list(wrong) if wrong and rng.random() < 0.3 else usable) for _ in range(settings.batch)]
        positive = [rng.choice(gold[n]) for n in batch]
        pool = list(positive)
        for n, chosen in zip(batch, positive, strict=True):
            for _ in range(settings.hard):
                hard = wrong.get(n) if rng.random() < 0.5 else None
                pool.append(rng.choice(hard or same[articles[bank.owner[chosen]]]))
        scores = _scores(query, key, asked, batch, chunks, pool) / settings.temperature
        # What answers a question must not be pushed away from it where it appears as another's negative.
        for row, n in enumerate(batch):
            home = questions[n].passages[0]
            also = [
                c
                for c in range(len(pool))
                if c != row
                and (
                    pool[c] in gold[n]
                    or (bank.owner[pool[c]] in private and articles[bank.owner[pool[c]]] != articles[home])
                )
            ]
            scores[row, also] = float("-inf")
        loss = functional.cross_entropy(scores, torch.arange(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"projection step {step}: loss {loss.item():.3f}", flush=True)
    return LateInteraction(
        base.mean, base.deviation, query_projection=query.detach(), key_projection=key.detach()
    ).requires_grad_(False)


def _project(projection: Tensor, rows: Tensor) -> Tensor:
    return functional.normalize(functional.linear(rows.float(), projection), dim=-1)


def _scores(
    query: Tensor,
    key: Tensor,
    asked: PaddedRows,
    batch: Sequence[int],
    chunks: PaddedRows,
    pool: Sequence[int],
) -> Tensor:
    """[question, chunk]: mean over question rows of the best cosine in the chunk."""
    q = _project(query, asked.rows[list(batch)])
    k = _project(key, chunks.rows[list(pool)])
    cosine = torch.einsum("bqd,ctd->bcqt", q, k)
    best = cosine.masked_fill(~chunks.mask[list(pool)][None, :, None, :], -1.0).amax(dim=-1)
    rows = asked.mask[list(batch)]
    # Rows that match every chunk of the batch say nothing: the same correction that recall makes.
    best = best - best.mean(dim=1, keepdim=True)
    return (best * rows[:, None]).sum(dim=-1) / rows.sum(dim=-1)[:, None]


@torch.inference_mode()
def _wrongly_picked(
    query: Tensor,
    key: Tensor,
    asked: PaddedRows,
    chunks: PaddedRows,
    gold: Sequence[Sequence[int]],
    questions: Sequence[int],
) -> dict[int, list[int]]:
    """Chunks that rank above the right one, for the questions that have such."""
    k = _project(key, chunks.rows)
    wrong: dict[int, list[int]] = {}
    hits = 0
    for n in questions:
        q = _project(query, asked.rows[n][asked.mask[n]])
        cosine = (k.flatten(0, 1) @ q.T).unflatten(0, k.shape[:2])
        best = cosine.masked_fill(~chunks.mask[..., None], -1.0).amax(dim=1)
        order = (best - best.mean(dim=0)).mean(dim=1).argsort(descending=True)[:12].tolist()
        hits += order[0] in gold[n]
        if order[0] not in gold[n]:
            wrong[n] = [c for c in order if c not in gold[n]][:8]
    print(f"projection: right chunk first for {hits / len(questions):.3f} of train", flush=True)
    return wrong
