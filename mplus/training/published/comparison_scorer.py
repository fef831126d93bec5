"""The published retriever, trained by the published loss to score ordinary chunks: a comparison.

The published recipe trains its retriever on compressed tokens, beside a write adapter. Here the same
projections and the same loss score each text token's own states, as the default layout keeps them, so that
both ways of recalling can be compared on one memory: ``MemoryConfig(recall="published")``, by whole chunks or
by single tokens. To be as good as it can be it is given what the late-interaction projection has: questions
with known answers, only the chunk with the answer labelled relevant (not all that was written with it), hard
negatives, queries and keys that start alike, and inputs of equal spread.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mplus.checkpoint.parts import TrainedParts
from mplus.inert import encode_inert
from mplus.recall.late_interaction import LateInteraction
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.questions import Question
from mplus.training.published.trained_modules import TrainableRetriever, half_precision, new_retriever, retriever_loss
from mplus.training.task import StepLoss, Task

MEASURED_QUESTIONS = 200
MEASURED_TOKENS = 256


@dataclass(frozen=True)
class ScorerSettings:
    """How long and how hard the scorer is trained."""

    steps: int = 1500
    batch: int = 8
    """Questions a step; each is a negative of the others."""
    hard: int = 2
    """Hard negatives per question: what late interaction ranks highest of the wrong chunks, or a neighbour."""
    size: int = 64
    """Numbers of a retrieval key [R]."""
    learning_rate: float = 1e-3
    warmup: int = 50
    seed: int = 0


class ScorerTask(Task):
    """Trains the published projections of every layer on questions about a bank of chunks.

    Args:
        bank: Encoded texts; every question's passages are among them.
        questions: To learn from; a tenth of them, at most 200, only measure.
        layer: Whose states the chunk layout scores; for the measurement.
        late: Late interaction, to find hard negatives and the spread of every layer's states.
        settings: Steps, sizes and rates.
        start: Parts of the model that stay as they are.
        groups: Per text of the bank, what it belongs to; neighbours are of the same.
        device: Where to train.
    """

    name = "scorer"

    def __init__(
        self,
        bank: ChunkBank,
        questions: Sequence[Question],
        layer: int,
        late: LateInteraction,
        settings: ScorerSettings,
        start: TrainedParts,
        groups: Sequence[int],
        device: torch.device | None = None,
    ) -> None:
        self.steps = settings.steps
        self._bank, self._layer, self._late, self._settings, self._start = bank, layer, late, settings, start
        gold = [bank.gold_chunks(q) for q in questions]
        usable = [n for n in range(len(questions)) if gold[n]]
        self._questions, self._gold = questions, gold
        random.Random(settings.seed).shuffle(usable)
        count = min(len(usable) // 10, MEASURED_QUESTIONS)
        self._measured, self._learnt = usable[:count], usable[count:]
        self._neighbours = bank.by_group(groups)
        self._groups = groups
        self._late_recall = BankRecall(bank, late, layer)
        self._hard: dict[int, list[int]] = {}
        self.retriever = self._new(device or torch.device("cpu"))

    def _new(self, device: torch.device) -> TrainableRetriever:
        generator = torch.Generator().manual_seed(self._settings.seed)
        retriever = new_retriever(self._bank.weights.backbone, self._settings.size, generator)
        with torch.no_grad():
            for projections in (retriever.query_projections, retriever.key_projections):
                for projection, spread in zip(projections.children(), self._late.deviation, strict=True):
                    first, _, second = projection.children()
                    first.weight /= spread  # pyright: ignore[reportOperatorIssue]
                    # A row's product with itself begins near 3: sigmoids that are not flat yet.
                    second.weight *= 3 / self._settings.size**0.5  # pyright: ignore[reportOperatorIssue]
        return retriever.to(device).requires_grad_(True)

    def groups(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """One group: both projections of every layer."""
        return {"retriever": dict(self.retriever.named_parameters())}

    def learning_rate(self, group: str, step: int) -> float:
        """Rises over the warm-up, then falls in a straight line to nothing."""
        settings = self._settings
        rising = min((step + 1) / max(settings.warmup, 1), 1.0)
        return settings.learning_rate * rising * (settings.steps - step) / settings.steps

    def loss(self, step: int, number: int) -> StepLoss:
        """Published loss, mean over the layers and the questions of a batch."""
        rng = random.Random(f"{self._settings.seed}/scorer/{step}/{number}")
        batch = rng.sample(self._learnt, min(self._settings.batch, len(self._learnt)))
        pool = list(dict.fromkeys(c for n in batch for c in (rng.choice(self._gold[n]), *self._negatives(n, rng))))
        owner = torch.tensor(pool).repeat_interleave(torch.tensor([len(self._bank.input_ids[c]) for c in pool]))
        asked = [self._asked(self._questions[n]) for n in batch]
        losses: list[Tensor] = []
        for layer in range(self._bank.weights.backbone.num_layers):
            normed = torch.cat([self._bank.normed(c, layer) for c in pool]).to(self.device)
            keys = self.retriever.keys(layer, normed)
            queries = self.retriever.queries(layer, torch.cat([rows[layer] for rows in asked]).to(self.device))
            parts = queries.split([rows.shape[1] for rows in asked])
            for n, mine in zip(batch, parts, strict=True):
                is_relevant = torch.isin(owner, torch.tensor(self._gold[n])).to(self.device)
                if not bool(is_relevant.all()):
                    losses.append(retriever_loss(mine, keys, is_relevant))
        loss = torch.stack(losses).mean()
        return StepLoss(loss, {"retriever": loss.item()})

    @property
    def device(self) -> torch.device:
        """The device that the projections are on."""
        return next(self.retriever.parameters()).device

    @torch.no_grad()
    def _asked(self, question: Question) -> Tensor:
        """Normed states of a question read alone, [layer, row, size]."""
        weights = self._bank.weights
        ids = torch.tensor(encode_inert(self._bank.tokenizer, question.text))
        states = weights.backbone.plain_states(ids, weights.backbone.num_layers - 1)
        return torch.stack([weights.norm(layer, rows, reading=False).float() for layer, rows in enumerate(states)])

    def _negatives(self, number: int, rng: random.Random) -> list[int]:
        mined = self._mined(number)
        same = self._neighbours[self._groups[self._bank.owner[self._gold[number][0]]]]
        chosen = [rng.choice(mined if mined and rng.random() < 0.5 else same) for _ in range(self._settings.hard)]
        return [c for c in chosen if c not in self._gold[number]]

    @torch.no_grad()
    def _mined(self, number: int) -> list[int]:
        """Wrong chunks that late interaction ranks highest; found once per question."""
        if number not in self._hard:
            order = self._late_recall.relevance(self._questions[number].text).argsort(descending=True)[:12].tolist()
            self._hard[number] = [c for c in order if c not in self._gold[number]][:8]
        return self._hard[number]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Of held-out questions, at the recall layer: right chunk first or among three, and its tokens recalled.

        ``token_recall`` is the share of the right chunk's tokens among the 256 best single tokens.
        """
        if not self._measured:
            return {}
        recall = BankRecall(self._bank, self.retriever, self._layer)
        chunk_of_token = torch.arange(len(recall.sizes)).repeat_interleave(recall.sizes)
        tokens = 0.0
        for n in self._measured:
            single = recall.token_relevance(self._questions[n].text)
            recalled = chunk_of_token[single.topk(min(MEASURED_TOKENS, len(single))).indices]
            wanted = self._gold[n][0]
            tokens += float((recalled == wanted).sum() / recall.sizes[wanted])
        figures = recall.figures([self._questions[n] for n in self._measured])
        return figures | {"token_recall": tokens / len(self._measured)}

    def trained(self) -> TrainedParts:
        """The model's parts, with this scorer among them."""
        return replace(self._start, published=half_precision(self.retriever))
