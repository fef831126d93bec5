"""Trains the gate: questions that memory is needed for, and ordinary ones, each beside a memory."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mplus.recall.choose import best_of
from mplus.recall.gate import NOTHING, BestUnit, Gate
from mplus.recall.scorer import Shortlist
from mplus.training.chunk.talk_samples import TalkSamples
from mplus.training.chunk.typed import typed


@dataclass(frozen=True)
class GateSettings:
    """How the gate is trained."""

    examples: int = 8000
    steps: int = 400
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.2
    hidden: int = 32
    seed: int = 0


class GateExample(NamedTuple):
    """A question beside a memory.

    Attributes:
        normed: The question's states at the recall layer.
        best: How well memory matches it.
        is_needed: Whether memory has to be asked.
    """

    normed: Tensor
    best: BestUnit
    is_needed: bool


def gate_examples(samples: TalkSamples, general: Sequence[str], count: int, rng: random.Random) -> list[GateExample]:
    """Questions of all kinds, four in ten of them ordinary ones that nothing in memory has to do with.

    Memories are of told things, of passages alone, down to a single one, and of both.

    Args:
        samples: Where told things and passages come from.
        general: Requests and questions about what everybody knows.
        count: How many.
        rng: Draws them.
    """
    found: list[GateExample] = []
    for _ in range(count):
        telling = rng.choice(samples.tellings)
        memory = samples.memory(rng, telling, len(telling.told) - 1, [], without=())
        kind = rng.random() * (1.0 if samples.questions else 0.75)
        if kind < 0.42:
            text, is_needed = rng.choice(general), False
            memory = memory if rng.random() < 0.6 else _passages(samples, rng)
        elif kind < 0.62:
            text, is_needed = rng.choice(telling.item.ask).q, True
        elif kind < 0.75:
            text, is_needed = rng.choice(telling.item.unknown), True
        else:
            question = rng.choice(samples.questions)
            is_needed = rng.random() < 0.85
            text, owned = question.text, set(samples.bank.chunks_in(question.passages))
            memory = memory if rng.random() < 0.4 else _passages(samples, rng)
            memory = [c for c in memory if c not in owned]
            if is_needed:
                place = rng.randint(0, len(memory))
                memory[place:place] = sorted(owned)
        found.append(_looked_at(samples, typed(rng, text), memory, is_needed))
    return found


def _passages(samples: TalkSamples, rng: random.Random) -> list[int]:
    """Chunks of none, a few or many passages."""
    count = min(rng.choice((0, 0, 0, 1, 2, 5, 20, 80)), len(samples.passages))
    return samples.bank.chunks_in(rng.sample(list(samples.passages), count))


def _looked_at(samples: TalkSamples, text: str, memory: Sequence[int], is_needed: bool) -> GateExample:
    question = samples.recall.question(text)
    if not memory:
        return GateExample(question.normed, NOTHING, is_needed)
    candidates = samples.recall.candidates.take(torch.tensor(sorted(set(memory))))
    scores = samples.recall.scorer.scores(question, Shortlist(candidates), samples.config)
    best = best_of(scores, question, candidates, len(scores.relevance))
    return GateExample(question.normed, best, is_needed)


def train_gate(examples: Sequence[GateExample], gate: Gate, settings: GateSettings) -> dict[str, float]:
    """Train a gate in place; returns how it does on a tenth of the examples that it has not seen."""
    torch.manual_seed(settings.seed)
    seen = torch.stack([gate.seen(e.normed, e.best) for e in examples])
    needed = torch.tensor([float(e.is_needed) for e in examples])
    held = torch.rand(len(examples)) < 0.1
    learnt, wanted = seen[~held], needed[~held]
    optimizer = torch.optim.AdamW(gate.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for _ in range(settings.steps):
        logits = gate.logits(functional.dropout(learnt, settings.dropout))
        loss = functional.binary_cross_entropy_with_logits(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        chance = gate.logits(seen[held]).sigmoid()
    right = needed[held].bool()
    return {
        "needed_kept": float((chance[right] >= 0.5).float().mean()),
        "ordinary_spared": float((chance[~right] < 0.5).float().mean()),
    }
