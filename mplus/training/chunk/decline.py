"""Trains the decline head: questions of held-out conversations and documents, told and never told, each read once."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mplus.decline_head import DeclineHead, ReadAs
from mplus.evaluation.question_prompts import Asked, prompt
from mplus.evaluation.tasks import COMMON, Question, Task
from mplus.generation.declining import LEAST_PROBABILITY, declining_token
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.progress import Progress
from mplus.read.prefill import prefill

FOLDS = 5
OTHER_SHARE = 8
"""One in so many of the prompts is an ordinary request, and one a message that tells something."""
DECLINE_AT = 0.5
"""Threshold of a head: told and never told count alike when it is trained, so that this weighs both errors alike."""


@dataclass(frozen=True)
class DeclineSettings:
    """How the decline head is trained.

    Attributes:
        questions: Most questions that are asked, as many told as never told as far as there are.
        penalties: Weights of the squared size of the head, of which the best is taken.
        steps: Most steps of the optimizer.
        seed: Decides which questions.
    """

    questions: int = 4000
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    steps: int = 200
    seed: int = 0


@dataclass(frozen=True)
class DeclineExamples:
    """Questions that were read, one a row.

    Attributes:
        layers: Layers whose inputs were kept.
        states: Their normed inputs at the last token of the prompt.
        own: Log-odds that the model itself gave to the first token of declining.
        unknown: Whether nothing that was told answers the question.
        groups: The item that each is about.
        read: How memory was read.
        has_learnt: Whether the model's read adapter was trained to decline.
    """

    layers: tuple[int, ...]
    states: Float[Tensor, "n C D"]
    own: Float[Tensor, " n"]
    unknown: Bool[Tensor, " n"]
    groups: tuple[str, ...]
    read: ReadAs
    has_learnt: bool

    def row_of(self, layer: int) -> Float[Tensor, "n F"]:
        """What a head of that layer looks at: states, and the log-odds of a model that learnt to decline."""
        own = self.own[:, None] if self.has_learnt else self.own.new_zeros(len(self.own), 1)
        return torch.cat([self.states[:, self.layers.index(layer)], own], dim=1)


def candidate_layers(num_layers: int) -> tuple[int, ...]:
    """Layers from the first third on, of which one is chosen by what its states tell of other items."""
    return tuple(sorted({num_layers * share // 12 for share in range(4, 12)}))


def decline_examples(
    model: MPlus, task: Task, general: Sequence[str], settings: DeclineSettings, progress: Progress | None = None
) -> DeclineExamples:
    """Ask questions of a memory of what they are about, and keep what the model knows when its answer begins.

    One in ``OTHER_SHARE`` is an ordinary request beside such a memory, and one something that a user tells in a
    conversation: neither is anything to decline.

    Args:
        model: The model, which reads as it does for users.
        task: Questions, told and never told, with their texts.
        general: Ordinary requests.
        settings: How many.
        progress: Shown how many of them were asked.
    """
    asked = _some(task.questions, general, settings)
    layers = candidate_layers(model.weights.backbone.num_layers)
    states, own, read = list[Tensor](), list[float](), set[ReadAs]()
    for contexts, questions in _by_contexts(asked).items():
        memory = model.new_memory()
        for name in contexts:
            model.write(memory, task.contexts[name], source=name)
        for question in questions:
            asked_as = prompt(question.text, "plain", before=question.before)
            found, odds, kind = _read(model, memory, asked_as, layers)
            states.append(found)
            own.append(odds)
            read.add(kind)
            if progress is not None:
                progress(len(own), len(asked))
    ordered = [question for questions in _by_contexts(asked).values() for question in questions]
    (kind,) = read
    return DeclineExamples(
        layers,
        torch.stack(states),
        torch.tensor(own),
        torch.tensor([not question.is_answerable for question in ordered]),
        tuple(question.id.split("/")[0] for question in ordered),
        kind,
        kind == "latent" or model.weights.text_backbone is not None,
    )


def fit_decline_head(examples: DeclineExamples, settings: DeclineSettings) -> tuple[DeclineHead, dict[str, float]]:
    """The head whose layer and penalty tell best of items that it has not seen, and how well it does there.

    Returns:
        The head, and its figures: ``area`` under the curve, of what was never told against what was told, and shares of
        both that it declines, of items that were left out.
    """
    folds = _folds(examples.groups, settings.seed)
    tried = {
        (layer, penalty): _left_out(examples.row_of(layer), examples.unknown, folds, penalty, settings.steps)
        for layer, penalty in product(examples.layers, settings.penalties)
    }
    areas = {key: area_under(scores, examples.unknown) for key, scores in tried.items()}
    layer, penalty = best = max(areas, key=lambda key: areas[key])
    declined = tried[best] >= 0
    weight, bias = _fit(examples.row_of(layer), examples.unknown, penalty, settings.steps)
    head = DeclineHead(len(weight) - 1, layer, examples.read)
    with torch.no_grad():
        head.state.weight.copy_(weight[None, :-1])
        head.state.bias.copy_(bias)
        head.own.copy_(weight[-1])
    return head.requires_grad_(False), {
        "layer": layer,
        "area": areas[best],
        "declined": float(declined[examples.unknown].float().mean()),
        "wrongly_declined": float(declined[~examples.unknown].float().mean()),
    }


def area_under(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Area under the receiver operating characteristic: how often a positive scores above one of the others."""
    above, below = scores[positive], scores[~positive]
    wins = (above[:, None] > below).float() + 0.5 * (above[:, None] == below).float()
    return float(wins.mean())


def _some(questions: Sequence[Question], general: Sequence[str], settings: DeclineSettings) -> list[Question]:
    """What is asked: as many told questions as never told ones as far as there are, and what is nothing to decline.

    Several questions are taken of a text: they share the beginning of their prompts, which is read once.
    """
    rng, most = random.Random(settings.seed), settings.questions // OTHER_SHARE
    known = [question for question in questions if question.is_answerable]
    unknown = [question for question in questions if not question.is_answerable]
    if not known or not unknown:
        raise ValueError("The decline head learns from questions that were told and from some that were not.")
    tellings = _tellings(known)
    requests = rng.sample(general, min(most, len(general)))
    told = rng.sample(tellings, min(most, len(tellings)))
    asked = _of_whole_texts(known, unknown, settings.questions - len(requests) - len(told), rng)
    beside = [question for question in asked if question.is_answerable] or known
    return [*asked, *told, *(replace(rng.choice(beside), text=text, before=(), kind=COMMON) for text in requests)]


def _of_whole_texts(
    known: Sequence[Question], unknown: Sequence[Question], count: int, rng: random.Random
) -> list[Question]:
    """All that a text does not answer and as many that it does, text by text; then the other told questions."""
    answered, unanswered = _by_contexts(known), _by_contexts(unknown)
    places = sorted({*answered, *unanswered})
    rng.shuffle(places)
    pairs, others = list[Question](), list[Question]()
    for place in places:
        told, untold = answered.get(place, []), unanswered.get(place, [])
        rng.shuffle(told)
        pairs += [question for pair in zip(untold, told, strict=False) for question in pair]
        pairs += untold[len(told) :]
        others += told[len(untold) :]
    return [*pairs, *others][:count]


def _tellings(questions: Sequence[Question]) -> list[Question]:
    """What users tell in the conversations that are asked about, each beside what was said before it."""
    found = {
        (question.contexts[:place], text): replace(question, text=text, contexts=question.contexts[:place], before=())
        for question in questions
        for place, (role, text) in enumerate(question.turns)
        if role == "user" and place
    }
    return [found[key] for key in sorted(found)]


def _by_contexts(questions: Sequence[Question]) -> dict[tuple[str, ...], list[Question]]:
    found: defaultdict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: question.id):
        found[question.contexts].append(question)
    return found


@torch.inference_mode()
def _read(
    model: MPlus, memory: Memory, asked: Asked, layers: Sequence[int]
) -> tuple[Float[Tensor, "C D"], float, ReadAs]:
    """Inputs of some layers at the last token of a prompt, the model's own log-odds of declining, and how it read."""
    request = model.read_request(memory, asked)
    weights, found = model.weights, dict[int, Tensor]()
    step = prefill(weights, [request], watch=lambda layer, states: found.update({layer: states[0, -1]}))
    modules = step.reading.modules
    states = [weights.backbone.normed(modules, layer, found[layer]).float().cpu() for layer in layers]
    chance = step.logits[0, -1].float().softmax(dim=-1)[declining_token(model.tokenizer)]
    return torch.stack(states), float(chance.logit(eps=LEAST_PROBABILITY)), "latent" if request.told is None else "text"


def _folds(groups: Sequence[str], seed: int) -> list[Bool[Tensor, " n"]]:
    """Which rows are left out in each fold; those of one item together."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    place = {name: number % FOLDS for number, name in enumerate(names)}
    numbers = torch.tensor([place[group] for group in groups])
    return [numbers == number for number in range(min(FOLDS, len(names)))]


def _left_out(
    rows: Float[Tensor, "n F"],
    unknown: Bool[Tensor, " n"],
    folds: Sequence[Bool[Tensor, " n"]],
    penalty: float,
    steps: int,
) -> Float[Tensor, " n"]:
    """Log-odds of each row by a head that was fitted without its item."""
    scores = torch.zeros(len(rows))
    for out in folds:
        weight, bias = _fit(rows[~out], unknown[~out], penalty, steps)
        scores[out] = rows[out] @ weight + bias
    return scores


def _fit(
    rows: Float[Tensor, "n F"], unknown: Bool[Tensor, " n"], penalty: float, steps: int
) -> tuple[Float[Tensor, " F"], Float[Tensor, ""]]:
    """Weight and bias of a logistic regression in which both kinds count alike."""
    mean, deviation = rows.mean(dim=0), rows.std(dim=0).clamp_min(1e-6)
    normal, wanted = (rows - mean) / deviation, unknown.float()
    share = wanted.mean().clamp(1e-6, 1 - 1e-6)
    balance = torch.where(unknown, 0.5 / share, 0.5 / (1 - share))
    weight, bias = torch.zeros(rows.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        errors = functional.binary_cross_entropy_with_logits(normal @ weight + bias, wanted, weight=balance)
        found = errors + penalty * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    weight = weight.detach() / deviation
    return weight, bias.detach() - weight @ mean
