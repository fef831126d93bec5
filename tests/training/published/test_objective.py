"""The published objective against slow, obvious versions of itself, and against the package's own reads and writes."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mplus.checkpoint.loading import assemble
from mplus.encode import Chunk, encode_adapter
from mplus.generation.prompt import Prompt
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.testing import byte_tokenizer, tiny_backbone, tiny_model
from mplus.training.chunk.plain_text import Document, Episode
from mplus.training.published.objective import PublishedObjective, read_target, remembered_front
from mplus.training.published.stages import Stage
from mplus.training.published.trained_modules import PartSizes, TrainableParts, retriever_loss
from mplus.write.absorb import write_chunks
from tests.training.published.stages import episodes, stage

SIZES = PartSizes(rank=3, dropout=0.0, retriever_size=8)
DOCUMENTS = [
    Document(
        str(i), " ".join(f"In place {i} box {j * 7 % 13} is {'red' if (i + j) % 3 else 'blue'}." for j in range(5))
    )
    for i in range(8)
]


@pytest.fixture(params=["llama", "qwen3"])
def parts(request) -> TrainableParts:
    """Parts that change everything, as after some training."""
    parts = TrainableParts(tiny_model(model_type=request.param).weights.backbone, SIZES, seed=1)
    disturb(parts)
    return parts


def disturb(parts: TrainableParts) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for leaf in parts.named().values():
            leaf += 0.1 * torch.randn(leaf.shape, generator=generator)


# --- oracles: one head, one row at a time where that is clearer than a formula ----------------------------


def adapted(parts: TrainableParts, role: str, index: int, name: str) -> tuple[Tensor, Tensor | None]:
    layer = parts._backbone.model.model.layers[index]
    base = layer.get_submodule(name)
    lora = parts.roles[role].get(f"{index}.{name}")
    return base.weight if lora is None else base.weight + lora.scale * lora.up @ lora.down, base.bias


def oracle_layer(parts: TrainableParts, role: str, index: int, rows: Tensor, first_query: int) -> Tensor:
    """Published decoder layer with a prefix (spec section 2), head by head."""
    backbone, config = parts._backbone, parts._backbone.config
    layer = backbone.model.model.layers[index]
    normed = layer.input_layernorm(rows)

    def linear(name: str, x: Tensor) -> Tensor:
        weight, bias = adapted(parts, role, index, name)
        return x @ weight.T if bias is None else x @ weight.T + bias

    size = backbone.head_size
    queries = linear("self_attn.q_proj", normed[first_query:]).unflatten(1, (-1, size))
    keys = linear("self_attn.k_proj", normed).unflatten(1, (-1, size))
    values = linear("self_attn.v_proj", normed).unflatten(1, (-1, size))
    if hasattr(layer.self_attn, "q_norm"):
        queries, keys = layer.self_attn.q_norm(queries), layer.self_attn.k_norm(keys)
    cos, sin = (x[0] for x in backbone.model.model.rotary_emb(rows[None], torch.arange(len(rows))[None]))

    def turned(x: Tensor, position: int) -> Tensor:
        half = size // 2
        return x * cos[position] + torch.cat([-x[half:], x[:half]]) * sin[position]

    mixed = []
    for row in range(len(queries)):
        position, heads = first_query + row, []
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.num_key_value_heads)
            query = turned(queries[row, head], position)
            scores = torch.stack([query @ turned(keys[p, group], p) for p in range(position + 1)]) / size**0.5
            heads.append(scores.softmax(dim=0) @ values[: position + 1, group])
        mixed.append(torch.cat(heads))
    hidden = rows[first_query:] + linear("self_attn.o_proj", torch.stack(mixed))
    x = layer.post_attention_layernorm(hidden)
    gated = torch.nn.functional.silu(linear("mlp.gate_proj", x)) * linear("mlp.up_proj", x)
    return hidden + linear("mlp.down_proj", gated)


def oracle_write(parts: TrainableParts, ids: Tensor, past: list[Tensor], num_new: int) -> list[Tensor]:
    hidden = parts._backbone.embed(ids)
    new = []
    for index in range(parts._backbone.num_layers):
        rows = torch.cat([parts.bos_states[index][None], past[index], hidden])
        first_query = max(min(1 + len(past[index]), len(rows) - num_new), 1)
        rows = torch.cat([rows[:-num_new], rows[-num_new:] + parts.write_position])
        output = oracle_layer(parts, "write_adapter", index, rows, first_query)
        new.append(output[-num_new:])
        hidden = output[-len(ids) :]
    return new


def oracle_loss(parts: TrainableParts, ids: Tensor, memory: list[Tensor]) -> Tensor:
    hidden = parts._backbone.embed(ids)
    for index in range(parts._backbone.num_layers):
        rows = torch.cat([parts.bos_states[index][None], memory[index], hidden])
        hidden = oracle_layer(parts, "read_adapter", index, rows, len(rows) - len(ids))
    model = parts._backbone.model
    logits = model.lm_head(model.model.norm(hidden))
    return -torch.stack([logits[t].log_softmax(dim=0)[ids[t + 1]] for t in range(len(ids) - 1)]).mean()


def gradients(parts: TrainableParts, loss: Tensor) -> dict[str, Tensor]:
    leaves = parts.named()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-4, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")


# --- the losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [12, 3], ids=["longer than K", "shorter than K"])
def test_a_direct_step_equals_its_oracle_with_all_gradients(parts: TrainableParts, length: int) -> None:
    """One chunk written with gradient and read back: value and gradient of every leaf (spec sections 2, 3, 6)."""
    config = stage().memory_in_training.model_copy(update={"tokens_per_write": 5})
    generator = torch.Generator().manual_seed(0)
    chunk = torch.randint(256, (length,), generator=generator)
    target = torch.randint(256, (7,), generator=generator)
    past = [torch.randn(5, 48, generator=generator) for _ in range(parts._backbone.num_layers)]

    expected = oracle_loss(parts, target, oracle_write(parts, chunk, past, 5))
    written = encode_adapter(parts.weights(), config, chunk.tolist(), tuple(past))
    ours = read_target(parts.weights(), target, lambda layer, _: written.states[layer]).loss
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    found = gradients(parts, ours)
    assert_same_gradients(found, gradients(parts, expected))
    # Writing is trained by this step, and by no other.
    assert {"write_position", "bos_states", "write_adapter.0.mlp.up_proj.up"} <= found.keys()
    assert not any(name.startswith("published.") for name in found)


def test_gradients_equal_differences(parts: TrainableParts) -> None:
    config = stage().memory_in_training
    chunk, target = list(b"The box in the hall is red."), torch.tensor(list(b"The hall box: red"))
    past = (torch.zeros(0, 48),) * parts._backbone.num_layers

    def loss() -> Tensor:
        written = encode_adapter(parts.weights(), config, chunk, past)
        return read_target(parts.weights(), target, lambda layer, _: written.states[layer]).loss

    found = gradients(parts, loss())
    for name in (
        "write_position",
        "bos_states",
        "write_adapter.1.self_attn.q_proj.down",
        "read_adapter.2.mlp.up_proj.up",
    ):
        leaf, norm = parts.named()[name], found[name].norm()
        # Up the steepest way, as far as the loss moves by 5e-4: well above rounding, well below curvature.
        move = found[name] / norm * (5e-4 / norm)
        with torch.no_grad():
            leaf += move
            above = loss()
            leaf -= 2 * move
            below = loss()
            leaf += move
        assert float(above - below) == pytest.approx(1e-3, rel=0.1), name


def test_the_retriever_loss_equals_its_oracle_with_gradients() -> None:
    """Class-balanced binary cross-entropy on the mean sigmoid, token by token (spec section 9)."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    keys = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    is_relevant = torch.tensor([0, 1, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool)

    def oracle(queries: Tensor, keys: Tensor) -> Tensor:
        classes: dict[bool, list[Tensor]] = {True: [], False: []}
        for key, label in zip(keys, is_relevant.tolist(), strict=True):
            p = sum(1 / (1 + (-(query @ key)).exp()) for query in queries) / len(queries)
            classes[label].append(-(p if label else 1 - p).log())
        return sum(sum(losses) / len(losses) for losses in classes.values()) / 2

    ours, expected = retriever_loss(queries, keys, is_relevant), oracle(queries, keys)
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(
        torch.autograd.grad(ours, [queries, keys]), torch.autograd.grad(expected, [queries, keys]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    torch.autograd.gradcheck(lambda q, k: retriever_loss(q, k, is_relevant), [queries, keys])


def test_the_retriever_loss_stays_finite_where_sigmoids_are_flat() -> None:
    queries = torch.full((3, 2), 200.0, requires_grad=True)
    keys = torch.tensor([[10.0, 10.0], [-10.0, -10.0]])
    loss = retriever_loss(queries, keys, torch.tensor([False, True]))
    loss.backward()
    assert loss.isfinite() and queries.grad is not None and bool(queries.grad.isfinite().all())
    assert float(queries.grad.abs().max()) > 0


# --- against the package ----------------------------------------------------------------------------------


def test_a_full_read_in_training_equals_a_read_of_the_model_that_is_saved() -> None:
    """With short-term and long-term memory, recall included: the same states give the same logits."""
    layout = stage()
    parts = TrainableParts(tiny_model().weights.backbone, SIZES, seed=1)
    disturb(parts)
    weights, config = parts.weights(), layout.memory_in_training
    memory = Memory(config, weights.empty_state(config), model_fingerprint="in training")
    texts = [d.text.encode()[:125] for d in DOCUMENTS[:5]]
    assert min(map(len, texts)) == 125
    chunks = [Chunk(list(text[i : i + 25]), [-1] * 25, i > 0) for text in texts for i in range(0, 125, 25)]
    state, _ = write_chunks(weights, memory, memory.state, chunks)
    assert len(state.tracks[0].long_term) and len(state.tracks[0].short_term) == config.short_term_tokens
    target = torch.tensor(list(b"In place 3 box 7 is red."))
    ours = read_target(weights, target, remembered_front(weights, state, config, len(target))).loss

    trained = parts.trained(tiny_model().trained_parts, layout.memory)
    trained = replace(trained, published=parts.retriever)  # not in half precision: recall must not differ
    model = MPlus(assemble(tiny_backbone(), byte_tokenizer(), trained), byte_tokenizer(), layout.memory, parts=trained)
    again = model.new_memory()
    final, _ = write_chunks(model.weights, again, again.state, [c._replace(sources=[0] * 25) for c in chunks])
    for layer in range(4):
        torch.testing.assert_close(
            final.tracks[layer].short_term.provenance.ages, state.tracks[layer].short_term.provenance.ages
        )
    again.commit(final)
    request = model.read_request(again, Prompt(tuple(target.tolist()), (0, len(target))))
    logits = prefill(model.weights, [request], all_logits=True).logits[0]
    theirs = torch.nn.functional.cross_entropy(logits[:-1], target[1:])
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_parts_that_changed_nothing_read_as_the_backbone_does() -> None:
    parts = TrainableParts(tiny_model().weights.backbone, SIZES)
    ids = torch.tensor(list(b"Some text that is read alone."))
    trained = read_target(parts.weights(), ids, lambda _, rows: rows[:0]).loss
    with torch.no_grad():
        logits = parts._backbone.model(torch.cat([torch.tensor([257]), ids])[None]).logits[0, 1:-1]
    torch.testing.assert_close(trained, torch.nn.functional.cross_entropy(logits, ids[1:]), atol=1e-4, rtol=1e-4)


# --- steps ------------------------------------------------------------------------------------------------


def objective(parts: TrainableParts, layout: Stage, **more) -> PublishedObjective:
    config = layout.memory_in_training
    memory = Memory(config, parts.weights().empty_state(config), model_fingerprint="in training")
    return PublishedObjective(parts, layout, episodes(byte_tokenizer()), memory, **more)


def test_each_kind_of_step_trains_what_it_is_for() -> None:
    parts = TrainableParts(tiny_model().weights.backbone, SIZES)
    disturb(parts)
    doing = objective(parts, stage(replayed=3))
    rng = random.Random(0)
    drawn = [doing._draw(rng) for _ in range(6)]

    for episode in drawn:
        full = doing.full(episode, rng)
    assert len(doing.replayed) == 3 and doing.replayed[-1].target == drawn[-1].target
    found = gradients(parts, full.loss)
    assert "retriever" in full.figures
    assert any(n.startswith("published.query") for n in found) and any(n.startswith("published.key") for n in found)
    assert any(n.startswith("read_adapter") for n in found) and "bos_states" in found
    assert not any(n.startswith("write") for n in found)

    before = doing.memory.state
    direct = gradients(parts, doing.direct(Episode((drawn[0].chunks[0],), drawn[0].target)).loss)
    assert any(n.startswith("write_adapter") for n in direct) and "write_position" in direct
    replay = doing.read(doing.replayed[0], "replay", rng)
    plain = doing.plain(drawn[0], rng)
    assert doing.memory.state is before, "only full steps write"
    assert "retriever" not in plain.figures and set(replay.figures) <= {"replay", "retriever"}


def test_the_retriever_is_told_which_tokens_were_written_for_the_target() -> None:
    parts = TrainableParts(tiny_model().weights.backbone, SIZES)
    doing = objective(parts, stage(2))
    rng = random.Random(1)
    for _ in range(4):
        doing.full(doing._draw(rng), rng)
    remembered = doing.replayed[-1]
    provenance = doing.memory.state.tracks[0].short_term.provenance
    # The newest chunks, of K tokens each, as far as random eviction has not taken some of them.
    labelled = (provenance.chunks >= remembered.first_chunk) & (provenance.chunks < remembered.stop_chunk)
    assert bool(labelled[-8:].all()) and not bool(labelled[0])
    rows = [torch.zeros(2, 48)] * 4
    loss = doing._retriever_loss(parts.weights(), doing.memory.state, remembered, rows)
    assert loss is not None and loss.item() == pytest.approx(0.6931, abs=1e-3), "sigmoid(0) for every token"
    nothing_left = replace(remembered, first_chunk=-3, stop_chunk=-1)
    assert doing._retriever_loss(parts.weights(), doing.memory.state, nothing_left, rows) is None


def test_shares_of_steps_are_as_published() -> None:
    doing = objective(TrainableParts(tiny_model().weights.backbone, SIZES), stage(1))
    kinds = [doing.kind(step) for step in range(4000)]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("plain", "replay", "direct", "full")}
    assert shares["plain"] == pytest.approx(0.075, abs=0.015)
    assert shares["replay"] == pytest.approx(0.925 * 0.2, abs=0.02)
    assert shares["direct"] == pytest.approx(0.925 * 0.8 * 0.15, abs=0.02)


def test_the_same_seed_takes_the_same_steps_and_processes_differ_in_samples_only() -> None:
    def losses(process: int, seed: int = 0) -> list[float]:
        parts = TrainableParts(tiny_model().weights.backbone, SIZES)
        doing = objective(parts, stage(), process=process, seed=seed)
        return [doing.loss(step).loss.item() for step in range(3)]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)
    assert losses(0) != losses(0, seed=1)
    kinds = [objective(TrainableParts(tiny_model().weights.backbone, SIZES), stage(), process=p) for p in (0, 1)]
    assert [kinds[0].kind(s) for s in range(50)] == [kinds[1].kind(s) for s in range(50)]


def test_mixed_precision_does_not_cut_the_retriever_off() -> None:
    """A search without gradient in the same autocast region leaves no low-precision copy for the loss to use."""
    parts = TrainableParts(tiny_model().weights.backbone, SIZES)
    disturb(parts)
    doing = objective(parts, stage(), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    rng = random.Random(0)
    for _ in range(6):
        lowered = doing.full(doing._draw(rng), rng)
    assert len(doing.memory.state.tracks[0].long_term), "so that recall searches"
    found = gradients(parts, lowered.loss)
    for wanted in ("published.query", "published.key", "read_adapter", "bos_states"):
        assert any(n.startswith(wanted) and float(g.abs().max()) > 0 for n, g in found.items()), wanted
