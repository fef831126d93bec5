"""Trains the gate: questions that memory is needed for, and ordinary ones, each beside a memory."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mplus.recall.gate import Gate
from mplus.recall.scorer import Shortlist
from mplus.training.chunk.talk_samples import TalkSamples, typed


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
        relevance: Of the best chunk above that of an average one.
        num_units: Chunks in memory.
        is_needed: Whether memory has to be asked.
    """

    normed: Tensor
    relevance: float
    num_units: int
    is_needed: bool


def gate_examples(samples: TalkSamples, general: Sequence[str], count: int, rng: random.Random) -> list[GateExample]:
    """Questions of all kinds, half of them ordinary ones that nothing in memory has to do with.

    Args:
        samples: Where told things and passages come from.
        general: Requests and questions about what everybody knows.
        count: How many.
        rng: Draws them.
    """
    found: list[GateExample] = []
    for _ in range(count):
        telling = rng.choice(samples.tellings)
        memory = samples.memory(rng, telling, len(telling.told) - 1, [], without=-1)
        kind = rng.random() * (1.0 if samples.questions else 0.8)
        if kind < 0.45:
            text, is_needed = rng.choice(general), False
        elif kind < 0.65:
            text, is_needed = rng.choice(telling.item.ask).q, True
        elif kind < 0.80:
            text, is_needed = rng.choice(telling.item.unknown), True
        else:
            question = rng.choice(samples.questions)
            is_needed = rng.random() < 0.75
            owned = set(samples.bank.chunks_in(question.passages))
            memory = [c for c in memory if c not in owned]
            if is_needed:
                place = rng.randint(0, len(memory))
                memory[place:place] = sorted(owned)
            text = question.text
        found.append(_looked_at(samples, typed(rng, text), memory, is_needed))
    return found


def _looked_at(samples: TalkSamples, text: str, memory: Sequence[int], is_needed: bool) -> GateExample:
    question = samples.recall.question(text)
    if not memory:
        return GateExample(question.normed, 0.0, 0, is_needed)
    candidates = samples.recall.candidates.take(torch.tensor(sorted(set(memory))))
    scores = samples.recall.scorer.scores(question, Shortlist(candidates), samples.config)
    return GateExample(
        question.normed, float(scores.relevance.max()) - scores.average, len(scores.relevance), is_needed
    )


def train_gate(examples: Sequence[GateExample], gate: Gate, settings: GateSettings) -> dict[str, float]:
    """Train a gate in place; returns how it does on a tenth of the examples that it has not seen."""
    torch.manual_seed(settings.seed)
    seen = torch.stack([gate.seen(e.normed, e.relevance, e.num_units) for e in examples])
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
