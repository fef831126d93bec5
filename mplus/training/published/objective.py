"""The published objective: direct, full, replay and plain steps through one memory that goes on and on.

Writing and reading are the package's own, with the trained parts in place of loaded ones. A read is walked
here once more, layer by layer, because gradients must reach what a prefix is made of; a test holds it to
the package's read, number by number.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mplus.backbone.attention import Rotation, rotate
from mplus.backbone.llama_layers import LlamaLayers
from mplus.config import MemoryConfig
from mplus.encode import Chunk, encode_adapter
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState, Track
from mplus.recall.choose import recall
from mplus.recall.scorer import Question
from mplus.training.chunk.plain_text import Episode, Episodes
from mplus.training.published.stages import Stage
from mplus.training.published.trained_modules import TrainableParts, retriever_loss
from mplus.training.task import StepLoss
from mplus.weights import Weights
from mplus.write.absorb import write_chunks

Kind = Literal["direct", "full", "replay", "plain"]
Front = Callable[[int, Float[Tensor, "S D"]], Float[Tensor, "T D"]]
"""Memory tokens, as states, that stand in front of a layer whose normed text rows are given."""
Autocast = Callable[[], AbstractContextManager[Any]]


class TargetRead(NamedTuple):
    """A target, read through memory."""

    loss: Float[Tensor, ""]
    """Next-token cross-entropy over the target's rows."""
    normed: tuple[Float[Tensor, "S D"], ...]
    """Every layer's normed text rows, without gradient."""


@dataclass(frozen=True)
class Remembered:
    """A target that replay may ask for again, and the chunks that were written before it."""

    target: tuple[int, ...]
    first_chunk: int
    stop_chunk: int


def read_target(weights: Weights, input_ids: Int[Tensor, " S"], front: Front) -> TargetRead:
    """Read a target with [bos ; memory] in front of every layer, and predict each of its tokens from those before.

    Args:
        weights: With trainable parts, for gradients.
        input_ids: The target; at least two tokens.
        front: Memory tokens of each layer.
    """
    backbone = weights.backbone
    assert isinstance(backbone, LlamaLayers), "a run refuses others"
    hidden = backbone.embed(input_ids)
    rows = hidden.shape[0]
    seen: list[Tensor] = []
    for index in range(backbone.num_layers):
        layer = backbone.read_layers[index]
        normed = weights.norm(index, hidden, reading=True)
        seen.append(normed.detach())
        memory = torch.cat([backbone.bos_states[index : index + 1], front(index, seen[-1]).to(hidden.dtype)])
        length = memory.shape[0] + rows
        rotation = backbone.rotation(torch.arange(length, device=hidden.device))
        mask = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[-rows:][None, None]
        old = backbone.keys_values(layer, weights.norm(index, memory, reading=True))
        own = backbone.keys_values(layer, normed)
        attended = backbone.attend(
            layer,
            rotate(backbone.queries(layer, normed), Rotation(rotation.cos[-rows:], rotation.sin[-rows:]))
            .transpose(0, 1)[None]
            .contiguous(),
            rotate(torch.cat([old.keys, own.keys]), rotation).transpose(0, 1)[None],
            torch.cat([old.values, own.values]).transpose(0, 1)[None],
            mask,
        )
        hidden = backbone.finish(layer, hidden, attended[0])
    logits = backbone.logits(hidden[:-1]).float()
    return TargetRead(functional.cross_entropy(logits, input_ids[1:].to(logits.device)), tuple(seen))


def remembered_front(weights: Weights, state: MemoryState, config: MemoryConfig, query_rows: int) -> Front:
    """[recalled ; short-term] of a memory whose tokens keep their states.

    Args:
        weights: For the retriever.
        state: What is remembered.
        config: How much is recalled.
        query_rows: Rows of the text that recall may look at; what comes after them is not known yet.
    """

    def front(layer: int, normed: Tensor) -> Tensor:
        track = state.tracks[layer]
        recent = _short_term_states(track)
        if not config.recalled_tokens or not len(track.long_term) + len(track.pending):
            return recent
        with torch.no_grad():
            question = Question(layer, normed[:query_rows])
            index = recall(weights.scorers[config.recall], track, config, question).index
            return torch.cat([_long_term_states(track, index, recent), recent])

    return front


def _short_term_states(track: Track) -> Float[Tensor, "T D"]:
    states = track.short_term.content.states
    assert states is not None, "a memory in training keeps states"
    return states[0].clone()  # Written in inference mode, whose tensors autograd does not accept.


def _long_term_states(track: Track, index: Int[Tensor, " T"], like: Tensor) -> Float[Tensor, "T D"]:
    """States of recalled tokens in the order of ``index``, whichever pool each waits in."""
    found = like.new_empty(len(index), like.shape[1])
    inside = index < len(track.long_term)
    for pool, here, shift in ((track.long_term, inside, 0), (track.pending, ~inside, len(track.long_term))):
        rows = here.nonzero().flatten()
        if len(rows):
            states = pool.content(index[rows] - shift, like.dtype, (like.device,)).states
            assert states is not None, "a memory in training keeps states"
            found[rows.to(like.device)] = states[0]
    return found


class PublishedObjective:
    """Draws steps of a stage and says what each is to lower.

    One memory goes through all steps, as in the published training: what one sample wrote is what the next
    ones must read past, and what replay asks for again.

    Args:
        parts: What is trained.
        stage: Shares and sizes.
        episodes: Where samples come from.
        memory: What is remembered so far; new, or that of a checkpoint.
        replayed: Earlier targets, oldest first.
        seed: With a step's number, decides all of it.
        process: Number of this process: processes take the same kinds of steps on different samples.
        autocast: Mixed precision for whatever is computed.
    """

    def __init__(
        self,
        parts: TrainableParts,
        stage: Stage,
        episodes: Episodes,
        memory: Memory,
        *,
        replayed: list[Remembered] | None = None,
        seed: int = 0,
        process: int = 0,
        autocast: Autocast | None = None,
    ) -> None:
        self.parts, self.stage, self.memory = parts, stage, memory
        self.replayed = replayed or []
        self._episodes, self._seed, self._process = episodes, seed, process
        self._autocast: Autocast = autocast or (lambda: torch.autocast("cpu", enabled=False))

    def kind(self, step: int, number: int = 0) -> Kind:
        """What kind of step is drawn: the same in every process."""
        rng = random.Random(f"{self._seed}/{self.stage.name}/{step}/{number}/kind")
        if rng.random() < self.stage.plain:
            return "plain"
        if rng.random() < self.stage.replay:
            return "replay"
        return "direct" if rng.random() < self.stage.direct else "full"

    def loss(self, step: int, number: int = 0) -> StepLoss:
        """The loss of one sample of a step; its writes are remembered."""
        rng = random.Random(f"{self._seed}/{self.stage.name}/{step}/{number}/{self._process}")
        kind = self.kind(step, number)
        if kind == "replay" and self.replayed:
            return self.read(rng.choice(self.replayed), "replay", rng)
        if kind == "direct":
            return self.direct(self._draw(rng, single=True))
        episode = self._draw(rng)
        if kind == "plain":
            return self.plain(episode, rng)
        return self.full(episode, rng)

    # --- kinds of steps ---------------------------------------------------------------------------

    def direct(self, episode: Episode) -> StepLoss:
        """One chunk is written with gradient and read back from its new tokens alone."""
        with self._autocast():
            weights = self.parts.weights()
            config = self.stage.memory_in_training
            written = encode_adapter(weights, config, episode.context, self._past(weights))
            loss = read_target(weights, self._ids(episode.target), lambda layer, _: written.states[layer]).loss
        return StepLoss(loss, {"direct": loss.item()})

    def full(self, episode: Episode, rng: random.Random) -> StepLoss:
        """All chunks are written without gradient, then the target is read with the whole memory."""
        first = self.memory.state.num_chunks
        with self._autocast():
            state, _ = write_chunks(self.parts.weights(), self.memory, self.memory.state, _chunks(episode))
        self.memory.commit(state)
        remembered = Remembered(episode.target, first, first + len(episode.chunks))
        self.replayed = [*self.replayed, remembered][-self.stage.replayed :]
        return self.read(remembered, "full", rng)

    def plain(self, episode: Episode, rng: random.Random) -> StepLoss:
        """Contexts and target as one text, under whatever is remembered."""
        text = (*episode.context, *episode.target)
        return self.read(Remembered(text[: self.stage.target_tokens], 0, 0), "plain", rng)

    def read(self, remembered: Remembered, kind: Kind, rng: random.Random) -> StepLoss:
        """A target is read with the whole memory; the retriever learns which of it was written for the target."""
        state, config = self.memory.state, self.stage.memory_in_training
        query_rows = rng.randint(1, len(remembered.target))
        with self._autocast():
            weights = self.parts.weights()
            front = remembered_front(weights, state, config, query_rows)
            read = read_target(weights, self._ids(remembered.target), front)
        figures = {kind: read.loss.item()}
        if not self.stage.has_retriever:
            return StepLoss(read.loss, figures)
        chosen = self._retriever_loss(weights, state, remembered, [rows[:query_rows] for rows in read.normed])
        if chosen is None:
            return StepLoss(read.loss, figures)
        return StepLoss(read.loss + chosen, figures | {"retriever": chosen.item()})

    def _retriever_loss(
        self, weights: Weights, state: MemoryState, remembered: Remembered, queries: list[Tensor]
    ) -> Float[Tensor, ""] | None:
        """Mean over layers; None where short-term memory holds nothing of the sample, or nothing else."""
        losses: list[Tensor] = []
        for layer, (track, rows) in enumerate(zip(state.tracks, queries, strict=True)):
            is_relevant = _written_between(track, remembered)
            if bool(is_relevant.any()) and not bool(is_relevant.all()):
                normed = weights.norm(layer, _short_term_states(track), reading=False)
                scorer = self.parts.retriever
                mine = is_relevant.to(normed.device)
                losses.append(retriever_loss(scorer.queries(layer, rows), scorer.keys(layer, normed), mine))
        return torch.stack(losses).mean() if losses else None

    # --- how much memory helps --------------------------------------------------------------------

    @torch.no_grad()
    def held_out(self, episodes: Episodes, count: int) -> dict[str, float]:
        """Loss on held-out texts: with their beginning in a new memory, and without it."""
        rng = random.Random(f"{self._seed}/held out")
        remembering = forgetting = 0.0
        for _ in range(count):
            episode = episodes.draw(rng, long=0, most=self.stage.long_tokens, repeat=0)
            weights, config = self.parts.weights(), self.stage.memory_in_training
            memory = self.parts.new_memory(config=config)
            ids = self._ids(episode.target)
            with self._autocast():
                state, _ = write_chunks(weights, memory, memory.state, _chunks(episode))
                front = remembered_front(weights, state, config, len(ids))
                remembering += read_target(weights, ids, front).loss.item()
                forgetting += read_target(weights, ids, lambda _, rows: rows[:0]).loss.item()
        return {"held_out": remembering / count, "held_out_without_memory": forgetting / count}

    # --- inside -----------------------------------------------------------------------------------

    def _draw(self, rng: random.Random, *, single: bool = False) -> Episode:
        stage = self.stage
        return self._episodes.draw(
            rng, long=stage.long_documents, most=stage.long_tokens, repeat=stage.repeat, single=single
        )

    def _past(self, weights: Weights) -> tuple[Tensor, ...]:
        """What a write sees of the memory: the last K tokens of every layer."""
        context = self.memory.state.context
        if context is None:
            nothing = torch.zeros(
                0, weights.backbone.hidden_size, dtype=weights.backbone.dtype, device=self.parts.device
            )
            return (nothing,) * weights.backbone.num_layers
        return tuple(rows.clone() for rows in context.states)

    def _ids(self, ids: tuple[int, ...]) -> Int[Tensor, " S"]:
        return torch.tensor(ids, device=self.parts.device)


def _chunks(episode: Episode) -> list[Chunk]:
    return [Chunk(list(ids), [-1] * len(ids), number > 0) for number, ids in enumerate(episode.chunks)]


def _written_between(track: Track, remembered: Remembered) -> Bool[Tensor, " T"]:
    chunks = track.short_term.provenance.chunks
    return (chunks >= remembered.first_chunk) & (chunks < remembered.stop_chunk)
