import warnings
from dataclasses import replace

import pytest
import torch

from mplus.backbone.attention import GROUPED_ATTENTION
from mplus.config import MemoryConfig
from mplus.layouts.whole_chunks import RIVALS, first_fitting, neighbours, standing_last
from mplus.model import MPlus
from mplus.read import prefill as read
from mplus.read.cache_layer import PrefixLayer
from mplus.read.decode import Reading
from mplus.read.prefill import ReadRequest, prefill, prefill_steps
from mplus.read.prefix import Chosen, ReadingOrder
from mplus.read.spare_prefixes import READ_BLOCK_TOKENS, SparePrefixes
from mplus.recall.choose import recall
from mplus.recall.scorer import Question
from mplus.testing import tiny_model
from tests.conftest import TINY

QUESTION = "Which box is blue?"


def request(model: MPlus, memory, prompt: str = QUESTION) -> ReadRequest:
    return model.read_request(memory, prompt)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_empty_memory_gives_the_backbones_logits(model_type: str) -> None:
    model = tiny_model(model_type=model_type, memory=TINY)
    one = request(model, model.new_memory())
    ours = prefill(model.weights, [one], all_logits=True).logits
    theirs = model.weights.backbone.model(torch.tensor([list(one.input_ids)])).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_sdpa_equals_eager(model_type: str, text: str) -> None:
    logits = []
    for implementation in (GROUPED_ATTENTION, "eager"):
        model = tiny_model(model_type=model_type, memory=TINY, attn_implementation=implementation)
        memory = model.new_memory()
        model.write(memory, text, source="a")
        step = prefill(model.weights, [request(model, memory)], all_logits=True)
        logits.append((step.logits, step.reading.decode([7])))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


@pytest.fixture
def spares(monkeypatch: pytest.MonkeyPatch) -> SparePrefixes:
    own = SparePrefixes(2**30)
    monkeypatch.setattr(read, "SPARE_PREFIXES", own)
    return own


QUESTIONS = (QUESTION, "Where is the red one, and who said so?", "Why?")


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_a_prefix_used_again_gives_what_a_fresh_one_gives(layout: str, text: str, spares: SparePrefixes) -> None:
    config = TINY if layout == "chunk" else TINY.model_copy(update={"layout": "token", "recall": "attention"})
    model = tiny_model(memory=config)
    memory, other = model.new_memory(), model.new_memory()
    model.write(memory, text, source="a")
    model.write(other, text[::-1], source="b")

    def answers() -> list[torch.Tensor]:
        logits: list[torch.Tensor] = []
        for question in QUESTIONS:
            for one in (memory, other):
                step = prefill(model.weights, [request(model, one, question)], all_logits=True)
                logits += [step.logits, step.reading.decode([7]), step.reading.decode([9])]
        return logits

    spares.max_bytes = 0
    fresh = answers()
    spares.max_bytes = 2**30
    answers()
    for again, expected in zip(answers(), fresh, strict=True):
        assert torch.equal(again, expected)
    pool = memory.state.tracks[0].short_term
    assert spares.take(pool, None, []) is not None
    assert spares.take(pool, None, []) is None, "one user at a time"


def test_two_readings_of_one_memory_at_once_do_not_share_a_prefix(text: str) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    prefill(model.weights, [request(model, memory)])
    first = prefill(model.weights, [request(model, memory)]).reading
    second = prefill(model.weights, [request(model, memory, QUESTIONS[1])]).reading
    assert first.layers[0].key_buffer.data_ptr() != second.layers[0].key_buffer.data_ptr()


def test_a_write_ends_the_use_of_a_prefix(text: str, spares: SparePrefixes) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    prefill(model.weights, [request(model, memory)])
    model.write(memory, text[:80], source="b")
    fresh = memory.fork()
    expected = prefill(model.weights, [request(model, fresh)]).logits
    assert torch.equal(prefill(model.weights, [request(model, memory)]).logits, expected)
    spares.max_bytes = 100
    prefill(model.weights, [request(model, memory)])
    assert spares.take(memory.state.tracks[0].short_term, None, []) is None, "larger than everything that may be kept"


CONVERSATION = [
    {"role": "user", "content": "Which box is blue? " * 9},
    {"role": "assistant", "content": "The seventh one, as was said. " * 5},
    {"role": "user", "content": "Which box is blue? " * 3},
    {"role": "assistant", "content": "The seventh."},
    {"role": "user", "content": "Which box is blue?"},
]


@pytest.mark.parametrize("written", [0, 60, 900])
def test_a_continued_conversation_reuses_the_prompt_bit_for_bit(text: str, written: int, spares: SparePrefixes) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    if written:
        model.write(memory, text[:written], source="a")
    turns = [model.read_request(memory, CONVERSATION[:size]) for size in (1, 3, 5)]
    pool = memory.state.tracks[0].short_term
    again: list[torch.Tensor] = []
    kept: list[int] = []
    for turn in turns:
        spare = spares.take(pool, None, turn.input_ids)
        if spare is not None:
            kept.append(spare.kept_tokens(spare.chosen, turn.input_ids))
            spares.keep(spare)
        step = prefill(model.weights, [turn])
        again += [step.logits, step.reading.decode([7])]
        del step
    # Beginnings of whole blocks are read once only, and what follows is as if they had been read anew.
    assert kept == [len(turn.input_ids) // READ_BLOCK_TOKENS * READ_BLOCK_TOKENS for turn in turns[:2]]
    for turn, place in zip(turns, range(0, 6, 2), strict=True):
        spares.clear()
        step = prefill(model.weights, [turn])
        assert torch.equal(step.logits, again[place])
        assert torch.equal(step.reading.decode([7]), again[place + 1])


def test_another_recall_or_another_beginning_is_read_again(text: str, spares: SparePrefixes) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    pool = memory.state.tracks[0].short_term
    long = request(model, memory, "Which box is blue? " * 20)
    step = prefill(model.weights, [long])
    ((chosen,),) = step.reading.recalled
    del step
    assert chosen.order is not None
    order = ReadingOrder(len(chosen.index), chosen.order)
    same, other = Chosen(chosen.index, order), Chosen(chosen.index.flip(0), order)
    moved = Chosen(chosen.index, replace(order, rows=order.rows.flip(0)))
    spare = spares.take(pool, other, long.input_ids)
    assert spare is not None
    assert spare.kept_tokens(other, long.input_ids) == 0
    assert spare.kept_tokens(moved, long.input_ids) == 0
    assert spare.kept_tokens(None, long.input_ids) == 0, "every layer chooses for itself"
    assert spare.kept_tokens(same, long.input_ids) > 0
    assert spare.kept_tokens(same, [1, *long.input_ids]) == 0
    assert spare.kept_tokens(same, long.input_ids[:READ_BLOCK_TOKENS]) == 0, "one token is left to be read"


def test_what_two_reading_orders_share_are_short_term_tokens_at_the_same_places() -> None:
    order = ReadingOrder(4, torch.tensor([0, 1, 4, 5, 6, 9, 2, 3, 7, 8]))
    assert order.runs == [(0, 2), (4, 7), (9, 10), (2, 4), (7, 9)]
    assert ReadingOrder(2, torch.arange(5)).runs == [(0, 2), (2, 5)], "recalled and short-term rows are kept apart"
    assert ReadingOrder(0, torch.arange(0)).runs == [] and ReadingOrder(0, torch.arange(3)).runs == [(0, 3)]
    assert order.shared(order) == [False, True, True, False, True], "recalled rows are others each time"
    fewer = ReadingOrder(3, torch.tensor([0, 1, 3, 4, 5, 6, 2, 7, 8, 9]))  # the same short-term row is numbered 1 less
    assert order.shared(fewer) == [False, True, False, False, False]
    assert order.shared(ReadingOrder(4, order.rows[:-1])) == [False] * 5, "all that stands behind has moved"


def test_two_users_never_share_what_a_read_left(model: MPlus, spares: SparePrefixes) -> None:
    one, other = model.new_memory(), model.new_memory()
    prefill(model.weights, [request(model, one, QUESTION * 20)])
    asked = request(model, other, QUESTION * 20)
    nothing = torch.empty(0, dtype=torch.int64)
    chosen = Chosen(nothing, ReadingOrder(0, nothing))
    assert spares.take(other.state.tracks[0].short_term, chosen, asked.input_ids) is None


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_read_uses_nothing_that_is_deprecated(model_type: str, text: str) -> None:
    model = tiny_model(model_type=model_type, memory=TINY)
    memory = model.new_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.write(memory, text, source="a")
        model.generate(memory, QUESTION, max_new_tokens=3)


def test_batch_equals_singles(model: MPlus, text: str) -> None:
    full, small, other = model.new_memory(), model.new_memory(), model.new_memory()
    model.write(full, text, source="a")
    model.write(small, text[:60], source="b")
    model.write(other, text[300:900], source="c")
    requests = [request(model, full, "a"), request(model, small, QUESTION * 2), request(model, other, "xyz")]
    together = prefill(model.weights, requests)
    steps = [together.reading.decode([5, 6, 7]), together.reading.decode([8, 9, 10])]
    for row, single in enumerate(requests):
        alone = prefill(model.weights, [single])
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
        for step, token in zip(steps, ([5, 6, 7], [8, 9, 10]), strict=True):
            torch.testing.assert_close(step[row], alone.reading.decode([token[row]])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beside", [False, True])
def test_rows_join_and_leave_between_tokens(model: MPlus, text: str, beside: bool) -> None:
    memories = [model.new_memory() for _ in range(4)]
    for n, memory in enumerate(memories):
        model.write(memory, text[n * 200 : n * 200 + 150 + 90 * n], source="a")
    requests = [request(model, m, "q" * (n * 5 + 1)) for n, m in enumerate(memories)]
    alone = [prefill(model.weights, [r]).reading for r in requests]

    def check(running, rows: list[int], token: int) -> None:
        together = running.decode([token + row for row in rows])
        for place, row in enumerate(rows):
            expected = alone[row].decode([token + row])[0]
            torch.testing.assert_close(together[place], expected, atol=1e-4, rtol=1e-4)

    def asked(running: Reading, rows: list[int]) -> Reading:
        steps = prefill_steps(model.weights, [requests[n] for n in rows], beside=running if beside else None)
        with pytest.raises(StopIteration) as done, torch.inference_mode():
            next(steps)
        return done.value.value.reading

    running = prefill(model.weights, [requests[1]]).reading
    check(running, [1], 7)
    running.join(asked(running, [3]))
    check(running, [1, 3], 8)
    running.join(asked(running, [0, 2]))
    for token in (9, 10):
        check(running, [1, 3, 0, 2], token)
    running.leave(0)
    check(running, [2, 3, 0], 11)
    running.leave(2)
    running.leave(0)
    check(running, [3], 12)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_rows_are_read_into_free_rows_of_a_running_batch(model_type: str, text: str) -> None:
    """Layers that lie side by side, and layers with buffers of their own, as where some have windows."""
    model = tiny_model(memory=TINY, model_type=model_type, num_key_value_heads=1)
    memory = model.new_memory()
    model.write(memory, text[:400], source="a")
    requests = [request(model, memory, "q" * (3 + n)) for n in range(7)]
    running = prefill(model.weights, requests[:1]).reading
    for rows in ([1, 2], [3], [4, 5, 6]):
        steps = prefill_steps(model.weights, [requests[n] for n in rows], beside=running)
        with pytest.raises(StopIteration) as done, torch.inference_mode():
            next(steps)
        joining = done.value.value.reading
        buffer = running.layers[0].key_buffer
        is_inside = joining.layers[0].key_buffer.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
        assert is_inside == (len(rows) > 1), "a single prompt keeps its prefix for the next read of its memory"
        running.join(joining)
        assert not is_inside or running.layers[0].key_buffer is buffer, "nothing is copied"
    # A column that is masked must hold a number.
    assert all(layer.key_buffer[:7].isfinite().all() for layer in running.layers)
    assert all(layer.value_buffer[:7].isfinite().all() for layer in running.layers)
    together = running.decode([5] * 7)
    for row, one in enumerate(requests):
        expected = prefill(model.weights, [one]).reading.decode([5])[0]
        torch.testing.assert_close(together[row], expected, atol=1e-4, rtol=1e-4)


def test_a_read_equals_attention_over_recomputed_prefix(text: str) -> None:
    """Oracle: project the stored states anew, rotate, attend with plain softmax, layer by layer."""
    config = TINY.model_copy(update={"keep_states": True})
    model = tiny_model(memory=config)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    one = request(model, memory)
    step = prefill(model.weights, [one], all_logits=True)
    (chosen,) = step.reading.recalled[0]
    assert len(chosen.index) > 0 and chosen.order is not None
    assert not torch.equal(chosen.order, torch.arange(len(chosen.order))), "what is not moved tests less"
    track = memory.state.tracks[0]
    stores = torch.cat([track.long_term.row, track.pending.row])
    assert len(stores) == len(track.long_term) + len(track.pending)
    backbone = model.weights.backbone
    hidden = backbone.embed(torch.tensor(list(one.input_ids)))
    with torch.no_grad():
        for layer in range(backbone.num_layers):
            states = [backbone.bos_states[layer : layer + 1]]
            for index in chosen.index.tolist():
                pool, at = (
                    (track.long_term, index)
                    if index < len(track.long_term)
                    else (track.pending, index - len(track.long_term))
                )
                states.append(pool.content(torch.tensor([at]), torch.float32, track.devices).states[layer])
            states.append(track.short_term.content.states[layer])
            prefix = torch.cat(states)
            prefix = torch.cat([prefix[:1], prefix[1:][chosen.order]])
            block = backbone.model.model.layers[layer]
            rows = torch.cat([prefix, hidden])
            n = block.input_layernorm(rows)
            heads, size = 6, 8
            q = block.self_attn.q_proj(n[len(prefix) :]).view(-1, heads, size)
            k = block.self_attn.k_proj(n).view(-1, 2, size).repeat_interleave(3, dim=1)
            v = block.self_attn.v_proj(n).view(-1, 2, size).repeat_interleave(3, dim=1)
            cos, sin = backbone.model.model.rotary_emb(n, torch.arange(len(rows))[None])

            def turn(x, c, s):
                a, b = x.chunk(2, -1)
                return x * c[:, None] + torch.cat([-b, a], -1) * s[:, None]

            q, k = turn(q, cos[0, len(prefix) :], sin[0, len(prefix) :]), turn(k, cos[0], sin[0])
            scores = torch.einsum("qhe,khe->hqk", q, k) / size**0.5
            mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(prefix))
            weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
            out = torch.einsum("hqk,khe->qhe", weights, v).flatten(1)
            hidden = hidden + block.self_attn.o_proj(out)
            hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
        torch.testing.assert_close(step.logits[0], backbone.logits(hidden), atol=1e-4, rtol=1e-4)


def test_a_read_changes_nothing_that_a_read_could_see(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    before = memory.fingerprint
    first = prefill(model.weights, [request(model, memory)]).logits
    model.generate(memory, QUESTION, max_new_tokens=4)
    assert memory.fingerprint == before
    assert torch.equal(prefill(model.weights, [request(model, memory)]).logits, first)


def chunks_read(model: MPlus, asked: ReadRequest) -> list[int]:
    """Serials of all chunks that a read reads, in that order."""
    (chosen,) = prefill(model.weights, [asked]).reading.recalled[0]
    recent = asked.state.tracks[0].short_term.provenance.chunks
    chunks = torch.cat([chosen.provenance.chunks, recent])
    assert chosen.order is not None
    assert torch.equal(chosen.order.sort().values, torch.arange(len(chunks))), "everything is read once"
    return chunks[chosen.order].unique_consecutive().tolist()


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("recent", [False, True])
def test_whole_chunks_are_read_oldest_first_but_the_best_last(
    model: MPlus, text: str, words: bool, recent: bool
) -> None:
    """In whatever pool the best is: what search ranks first stands last, or before a newer one as relevant."""
    config = TINY.model_copy(update={"recalled_tokens": 160, "lexical_weight": 4.0 if words else 0.0})
    memory = model.new_memory(config=config)
    notes = [text[place : place + 30] for place in range(0, len(text), 30)]
    notes.insert(len(notes) - 1 if recent else 3, QUESTION)
    for place, note in enumerate(notes):  # of one chunk each, so that none has neighbours
        model.write(memory, note, source=f"note {place}")
    asked = request(model, memory)
    read = chunks_read(model, asked)
    assert len(read) == len(set(read)) > 4
    (chosen,) = prefill(model.weights, [asked]).reading.recalled[0]
    assert 0 < len(chosen.index) <= config.recalled_tokens
    track = asked.state.tracks[0]
    pools = (track.long_term, track.pending, track.short_term)
    chunks, sources = (torch.cat([getattr(pool.provenance, name) for pool in pools]) for name in ("chunks", "sources"))
    for chunk in chosen.provenance.chunks.unique():
        assert (chosen.provenance.chunks == chunk).sum() == (chunks == chunk).sum()
    found = model.search(memory, QUESTION, limit=None)
    relevance = {one.source: one.relevance for one in found}
    names = [asked.state.sources[int(sources[chunks == chunk][0])].name for chunk in read]
    best = max(names, key=lambda name: relevance[name])
    assert best == found[0].source, "what search finds first is read"
    assert (chunks[torch.isin(chunks, track.short_term.provenance.chunks)] == read[names.index(best)]).any() == recent
    last = [best] if names[-1] == best else names[-2:]
    assert last[0] == best
    if len(last) == 2:
        assert read[-2] < read[-1]
        assert last[1] in sorted(names, key=lambda name: -relevance[name])[1 : 1 + RIVALS]
    assert read[: -len(last)] == sorted(read[: -len(last)])


def test_a_later_chunk_of_similar_relevance_follows_the_best_one() -> None:
    written = {4: 1.0, 7: 2.0, 9: 3.0, 5: 4.0, 6: 5.0, 2: 9.0}
    relevance = torch.zeros(10)
    relevance[4], relevance[7], relevance[9], relevance[5], relevance[2] = 1.0, 0.7, 0.8, 0.76, 0.76
    alone = torch.zeros(10, dtype=torch.bool)
    assert standing_last([4, 7], written, relevance, alone) == [4], "later, but about something else"
    assert standing_last([4, 9, 7], written, relevance, alone) == [4, 9], "its change"
    assert standing_last([4, 9, 5, 7], written, relevance, alone) == [4, 5], "the newest change counts"
    assert standing_last([4, 9, 5, 7, 2], written, relevance, alone) == [4, 5], (
        "what is not among the next best is no change"
    )
    assert standing_last([5, 4, 7], written, relevance, alone) == [5], "what was said before stays before"
    assert standing_last([], written, relevance, alone) == []
    assert standing_last([4, 7], written, relevance - 1, alone) == [4], "nothing is as relevant as an average chunk"
    one_text = torch.tensor([n in (4, 5, 6) for n in range(10)])  # 3 to 6
    assert standing_last([4, 9, 5], written, relevance, one_text) == [4, 5], "what stands next to it in its text"
    assert standing_last([4, 9, 6], written, relevance, one_text) == [4, 9], "6 is not next to 4"


@pytest.mark.default_model
@pytest.mark.parametrize("fillers", [0, 3, 20])
def test_a_change_follows_the_chunk_that_it_changes(default_model: MPlus, fillers: int) -> None:
    """Said in two notes among others about much the same things; both, one or none still in short-term memory."""
    memory = default_model.new_memory()
    notes = [
        "My bank password is maple44.",
        "My laptop password is cobalt17.",
        "My bank password has changed; it is lantern90 now.",
        "My laptop password has changed; it is velvet31 now.",
        "The code of my safe is 4711.",
    ]
    for place, note in enumerate([*notes, *(f"Filler {n}: the weather was calm by the sea." for n in range(fillers))]):
        default_model.write(memory, note, source=f"note {place}")
    asked = default_model.read_request(memory, [{"role": "user", "content": "What is my bank password?"}])
    assert chunks_read(default_model, asked)[-1] == 2, "not the newer laptop's"


ELSE = "Quite another thing happened then, somewhere else. "
"""Says no word of the question."""


def test_the_best_chunk_comes_with_its_neighbours_of_the_same_text_and_they_stand_last(model: MPlus, text: str) -> None:
    """Held against the plain choice: the same best chunk, then what stands around it in its source, then the others."""
    plain = TINY.model_copy(update={"recalled_tokens": 160})
    found: dict[int, list[int]] = {}
    for reach in (0, 1, 2):
        memory = model.new_memory(config=plain.model_copy(update={"recalled_neighbours": reach}))
        for start in range(0, len(text), 200):
            model.write(memory, text[start : start + 200], source=f"part {start}")
        model.write(memory, ELSE * 2, source="else")
        asked = request(model, memory)
        (chosen,) = prefill(model.weights, [asked]).reading.recalled[0]
        assert len(chosen.index) <= plain.recalled_tokens
        found[reach] = chunks_read(model, asked)
        pools = (asked.state.tracks[0].long_term, asked.state.tracks[0].pending, asked.state.tracks[0].short_term)
        known = [pool.provenance for pool in pools]
        sources = {int(c): int(s) for one in known for c, s in zip(one.chunks, one.sources, strict=True)}
        if not reach:
            relevance = {int(c): float(r) for c, r in zip(chosen.provenance.chunks, chosen.relevance, strict=True)}
            best = max(relevance, key=lambda chunk: relevance[chunk])
            continue
        around = [c for c in range(best - reach, best + reach + 1) if sources.get(c) == sources[best]]
        assert len(around) > 1, "a question whose best chunk stands alone tests nothing"
        assert found[reach][-len(around) :] == around
        others = [c for c in found[0] if c not in around]
        assert set(found[reach][: -len(around)]) <= set(others), "then the others, most relevant first, while they fit"
        assert found[reach][: -len(around)] == sorted(found[reach][: -len(around)])
    assert found[1] != found[2]


def test_a_cutoff_leaves_out_what_is_far_less_relevant_than_the_best(model: MPlus, text: str) -> None:
    """Held against the plain choice; late interaction alone, where an average chunk has a relevance of 0."""
    plain = TINY.model_copy(update={"recalled_tokens": 160, "lexical_weight": 0.0})
    found: dict[float, dict[int, float]] = {}
    for cutoff in (0.0, 0.5, 0.9, 1.0):
        memory = model.new_memory(config=plain.model_copy(update={"relevance_cutoff": cutoff}))
        for start in range(0, len(text), 200):
            model.write(memory, text[start : start + 200], source=f"part {start}")
        (chosen,) = prefill(model.weights, [request(model, memory)]).reading.recalled[0]
        found[cutoff] = {int(c): float(r) for c, r in zip(chosen.provenance.chunks, chosen.relevance, strict=True)}
    best = max(found[0.0].values())
    for cutoff, kept in found.items():
        assert kept == {c: r for c, r in found[0.0].items() if r >= cutoff * best}
    assert len(found[1.0]) == 1 < len(found[0.0])


@pytest.mark.parametrize("after", ["", ELSE * 2])
def test_neighbours_of_the_best_chunk_stay_next_to_it(model: MPlus, text: str, after: str) -> None:
    """Of a text that short-term memory still holds the end of, and of one that has left it."""
    memory = model.new_memory(config=TINY.model_copy(update={"recalled_tokens": 320}))
    model.write(memory, text, source="a")
    if after:
        model.write(memory, after, source="else")
    asked = request(model, memory)
    read = chunks_read(model, asked)
    (chosen,) = prefill(model.weights, [asked]).reading.recalled[0]
    relevance = {int(c): float(r) for c, r in zip(chosen.provenance.chunks, chosen.relevance, strict=True)}
    best = max(relevance, key=lambda chunk: relevance[chunk])
    recent = asked.state.tracks[0].short_term.provenance.chunks
    if read[-1] == int(recent[-1]):  # the best is among the last that were written: all is as it was written
        assert not after and read == sorted(read)
        return
    beside = [chunk for chunk in (best - 1, best, best + 1) if chunk in read]
    assert len(beside) > 1, "a question whose best chunk stands alone tests nothing"
    assert read[-len(beside) :] == beside


def test_neighbours_end_where_the_text_does() -> None:
    goes_on = torch.tensor([False, True, True, False, True, True, True])
    assert neighbours(1, goes_on, 1) == [1, 0, 2]
    assert neighbours(2, goes_on, 3) == [2, 1, 0]
    assert neighbours(3, goes_on, 2) == [3, 4, 5]
    assert neighbours(0, goes_on, 0) == [0]
    assert neighbours(5, goes_on, 2**50) == [5, 4, 6, 3], "it went on looking where nothing is left"
    sizes = torch.tensor([8, 8, 8, 8, 8, 8, 8])
    assert first_fitting([1, 0, 2, 5, 1, 4], sizes, 34).tolist() == [1, 0, 2, 5]
    assert first_fitting([], sizes, 34).tolist() == []


@pytest.mark.parametrize("scorer", ["late", "attention"])
@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_layouts_and_scorers_read(text: str, scorer: str, layout: str) -> None:
    config = MemoryConfig(**(TINY.model_dump() | {"layout": layout, "recall": scorer}))
    model = tiny_model(memory=config)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    answer = model.generate(memory, QUESTION, max_new_tokens=3)
    assert answer.completion_tokens == 3
    assert sum(r.share for r in answer.recalled) == pytest.approx(1.0)
    assert answer.prefix_tokens == 1 + sum(
        [
            len(memory.state.tracks[0].short_term),
            len(prefill(model.weights, [request(model, memory)]).reading.recalled[0][0].index),
        ]
    )


def test_memory_without_long_term_reads_short_term_only(text: str) -> None:
    model = tiny_model(memory=MemoryConfig(**(TINY.model_dump() | {"long_term_capacity": 0})))
    memory = model.new_memory()
    model.write(memory, text, source="a")
    assert {read.pool for read in model.generate(memory, QUESTION, max_new_tokens=2).recalled} == {"short_term"}
    assert memory.stats().long_term.nbytes == memory.stats().pending.nbytes == 0


def test_prefix_layer_grows_like_concatenation() -> None:
    start = torch.randn(2, 3, 5, 4)
    keys = torch.zeros(2, 3, 8, 4)
    keys[:, :, :5] = start
    layer = PrefixLayer(keys, keys.clone(), [5, 3])
    parts = [[start[0]], [start[1, :, :3]]]
    for size in (1, 2, 7, 300, 1):
        new = torch.randn(2, 3, size, 4)
        got, _ = layer.update(new, new)
        for row in range(2):
            parts[row].append(new[row])
            expected = torch.cat(parts[row], dim=1)
            assert torch.equal(got[row, :, : expected.shape[1]], expected)
    assert layer.lengths == [5 + 311, 3 + 311]
    assert layer.get_seq_length() == 5 + 311
    assert bool(got.isfinite().all()), "what is not seen has weight 0, and 0 times infinity is not 0"


def test_published_fallback_repeats_a_short_long_term(model: MPlus, text: str) -> None:
    config = MemoryConfig(
        **(TINY.model_dump() | {"layout": "token", "repeat_short_recall": True, "recalled_tokens": 64})
    )
    loaded = tiny_model(memory=config)
    memory = loaded.new_memory()
    loaded.write(memory, text[:500], source="a")
    track = memory.state.tracks[0]
    assert len(track.long_term) + len(track.pending) > 0
    question = Question(track.recall_layer, torch.randn(3, 48))
    chosen = recall(loaded.weights.scorers[config.recall], track, config, question)
    if len(track.long_term) == 0:
        assert len(chosen.index) == 0
    else:
        assert len(chosen.index) == 64
