"""Perplexity on ordinary text: what memory costs a text that has nothing to do with it.

Each document's second half is scored as the continuation of its first: by transformers' own forward pass, by M+ with
an empty memory, and by M+ after more and more other text has been written. Recall sees the first half only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from mplus.config import MemoryConfig
from mplus.evaluation.metrics import RESAMPLES, Estimate
from mplus.evaluation.retention import Stream, WrittenMemory, distractor_names
from mplus.generation.prompt import Prompt
from mplus.inert import encode_inert
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill

DOCUMENT_TOKENS = 256
SHORTEST_TOKENS = 32
BACKBONE, EMPTY, FULL = CONDITIONS = ("backbone", "empty memory", "memory")


@dataclass(frozen=True)
class Document:
    """A text whose second half is scored.

    Attributes:
        id: Its name.
        input_ids: Its tokens, cut to ``DOCUMENT_TOKENS``.
    """

    id: str
    input_ids: tuple[int, ...]

    @property
    def half(self) -> int:
        """Where the scored half begins."""
        return len(self.input_ids) // 2


class Scored(NamedTuple):
    """How likely a document's second half was.

    Attributes:
        id: The document's name.
        level: Distractor tokens in memory.
        loss: Sum of negative log-likelihoods, in nats.
        tokens: How many tokens were scored.
    """

    id: str
    level: int
    loss: float
    tokens: int


def documents(texts: Mapping[str, str], tokenizer: Any) -> list[Document]:
    """Texts by name as documents.

    Raises:
        ValueError: One is too short to be scored.
    """
    found: list[Document] = []
    for name, text in texts.items():
        ids = encode_inert(tokenizer, text)[:DOCUMENT_TOKENS]
        if len(ids) < SHORTEST_TOKENS:
            raise ValueError(f"{name} has {len(ids)} tokens: expected at least {SHORTEST_TOKENS}. Leave it out.")
        found.append(Document(name, tuple(ids)))
    return found


class Condition:
    """One way of reading documents: the bare backbone, or M+ with what was written up to a level."""

    def __init__(self, name: str, model: MPlus, config: MemoryConfig, stream: Stream, *, batch: int, seed: int) -> None:
        self.name = name
        self.model, self.stream = model, stream
        # Text in the prompt would move the tokens that are scored.
        self.config = config.model_copy(update={"read": "latent"})
        self.batch, self.seed = batch, seed

    def levels(self) -> tuple[int, ...]:
        """Levels at which it scores: only a memory that is written into has more than one."""
        return tuple(level for level in self.stream.levels if level) if self.name == FULL else (0,)

    def scored(self, wanted: dict[int, list[Document]]) -> Iterator[Scored]:
        """Score documents, level by level."""
        written = WrittenMemory(self.model, self.config, seed=self.seed)
        count = 0
        for level in sorted(wanted):
            if self.name == FULL:
                upto = self.stream.count(level)
                written.write(distractor_names(count, upto), self.stream.distractors[count:upto])
                count = upto
            ordered = sorted(wanted[level], key=lambda document: len(document.input_ids))
            for start in range(0, len(ordered), self.batch):
                batch = ordered[start : start + self.batch]
                losses = self._alone(batch) if self.name == BACKBONE else self._beside(written.memory, batch)
                for document, loss in zip(batch, losses, strict=True):
                    yield Scored(document.id, level, loss, len(document.input_ids) - document.half)

    @torch.inference_mode()
    def _alone(self, batch: Sequence[Document]) -> list[float]:
        backbone = self.model.weights.backbone
        losses: list[float] = []
        for document in batch:
            ids = torch.tensor([document.input_ids], device=backbone.device)
            losses.append(_loss(backbone.model(input_ids=ids).logits[0], document))
        return losses

    @torch.inference_mode()
    def _beside(self, memory: Memory, batch: Sequence[Document]) -> list[float]:
        requests = [
            self.model.read_request(memory, Prompt(document.input_ids, (0, document.half))) for document in batch
        ]
        logits = prefill(self.model.weights, requests, all_logits=True).logits
        # Prompts are padded on the right.
        return [_loss(rows[: len(document.input_ids)], document) for rows, document in zip(logits, batch, strict=True)]


def _loss(logits: torch.Tensor, document: Document) -> float:
    ids = torch.tensor(document.input_ids, device=logits.device)
    begin = document.half
    losses = torch.nn.functional.cross_entropy(logits[begin - 1 : -1].float(), ids[begin:], reduction="sum")
    return float(losses)


@dataclass(frozen=True)
class Figure:
    """Perplexity of one condition at one level, and its ratio to the bare backbone's on the same documents."""

    name: str
    level: int
    perplexity: Estimate
    ratio: Estimate | None


def figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """Perplexities with 95% bootstrap intervals over documents; of a ratio, both sides are drawn together."""
    groups: dict[tuple[str, int], dict[str, tuple[float, int]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["level"]), {})[row["id"]] = (row["loss"], row["tokens"])
    base = groups.get((BACKBONE, 0))
    found: list[Figure] = []
    for (name, level), losses in groups.items():
        ratio = None
        if base is not None and name != BACKBONE and base.keys() >= losses.keys():
            ratio = _perplexity(losses, {document: base[document][0] for document in losses})
        found.append(Figure(name, level, _perplexity(losses, None), ratio))
    return found


def _perplexity(losses: dict[str, tuple[float, int]], base: dict[str, float] | None) -> Estimate:
    nats = np.array([loss - (base[name] if base else 0.0) for name, (loss, _) in losses.items()])
    tokens = np.array([count for _, count in losses.values()])
    drawn = np.random.default_rng(0).integers(len(nats), size=(RESAMPLES, len(nats)))
    low, high = np.quantile(np.exp(nats[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)), [0.025, 0.975])
    return Estimate(float(np.exp(nats.sum() / tokens.sum())), float(low), float(high), len(nats))
