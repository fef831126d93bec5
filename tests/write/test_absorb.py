from dataclasses import replace

import pytest
import torch

from mplus.encode import Chunk, encode_states
from mplus.errors import MemoryMismatchError
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from tests.comparisons import assert_same
from tests.conftest import TINY


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_states_equal_a_plain_forward_of_what_each_chunk_sees(model_type: str) -> None:
    """Oracle: run [bos ; previous chunk ; chunk] row by row through each layer with a full mask."""
    model = tiny_model(model_type=model_type, memory=TINY)
    weights, backbone = model.weights, model.weights.backbone
    chunks = [
        Chunk(list(b"The first part of it."), [0] * 21, False),
        Chunk(list(b"And then the second one"), [0] * 23, True),
        Chunk(list(b"Another text"), [1] * 12, False),
        Chunk(list(b"goes on here!"), [1] * 13, True),
    ]
    with torch.no_grad():
        encoded = encode_states(weights, chunks, [None] * len(chunks))
        sizes = [len(c.input_ids) for c in chunks]
        for number, chunk in enumerate(chunks):
            start = sum(sizes[:number])
            for layer in range(backbone.num_layers - 1):
                past = (
                    encoded.states[layer][start - sizes[number - 1] : start]
                    if chunk.continues
                    else encoded.states[0][:0]
                )
                rows = torch.cat(
                    [backbone.bos_states[layer : layer + 1], past, encoded.states[layer][start : start + sizes[number]]]
                )
                output = backbone.model.model.layers[layer](
                    rows[None],
                    attention_mask=torch.ones(len(rows), len(rows), dtype=torch.bool).tril()[None, None],
                    position_embeddings=backbone.model.model.rotary_emb(rows[None], torch.arange(len(rows))[None]),
                )
                output = output[0] if isinstance(output, tuple) else output
                torch.testing.assert_close(
                    encoded.states[layer + 1][start : start + sizes[number]],
                    output.reshape(-1, 48)[-sizes[number] :],
                    atol=1e-4,
                    rtol=1e-4,
                )


def test_stored_keys_and_values_equal_recomputation_from_states(text: str) -> None:
    model = tiny_model(memory=TINY.model_copy(update={"keep_states": True}))
    memory = model.new_memory()
    model.write(memory, text, source="a")
    track = memory.state.tracks[0]
    for pool in (
        track.short_term.content,
        track.long_term.content(torch.arange(len(track.long_term)), torch.float32, track.devices),
    ):
        assert pool.states is not None
        for layer, states in enumerate(pool.states):
            block = model.weights.backbone.model.model.layers[layer]
            with torch.no_grad():
                normed = block.input_layernorm(states)
                torch.testing.assert_close(
                    pool.keys[layer].flatten(1), block.self_attn.k_proj(normed), atol=1e-5, rtol=1e-5
                )
                torch.testing.assert_close(
                    pool.values[layer].flatten(1), block.self_attn.v_proj(normed), atol=1e-5, rtol=1e-5
                )


def test_writing_in_one_call_equals_writing_in_many(model: MPlus, text: str) -> None:
    texts = [text[:200], text[200:777], text[777:790], text[790:]]
    one, many = model.new_memory(), model.new_memory()
    model.write(one, texts, source="a")
    for part in texts:
        model.write(many, part, source="a")
    assert_same(one, many)
    assert one.fingerprint == many.fingerprint


def test_token_ids_written_in_chunks_equal_one_write(model: MPlus) -> None:
    ids = [97 + i * 7 % 24 for i in range(32 * 6)]
    one, many = model.new_memory(), model.new_memory()
    model.write(one, ids, source="a")
    for i in range(0, len(ids), 32):
        model.write(many, ids[i : i + 32], source="a")
    assert_same(one, many)


def test_the_same_seed_and_writes_give_the_same_memory_bit_for_bit(text: str) -> None:
    model = tiny_model(memory=TINY.model_copy(update={"layout": "token"}))
    memories = [model.new_memory(seed=s) for s in (3, 3, 4)]
    for memory in memories:
        model.write(memory, text, source="a")
    same, also, other = ([t.short_term.provenance.ages for t in m.state.tracks] for m in memories)
    assert all(torch.equal(a, b) for a, b in zip(same, also, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))
    for a, b in zip(memories[0].state.tracks, memories[1].state.tracks, strict=True):
        assert torch.equal(a.short_term.content.keys[0], b.short_term.content.keys[0])


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_nothing_is_lost_between_evict_and_consolidate(text: str, layout: str) -> None:
    model = tiny_model(memory=TINY.model_copy(update={"layout": layout}))
    memory = model.new_memory()
    written = 0
    for i in range(8):
        report = model.write(memory, text[i * 100 : i * 100 + 230], source=f"s{i}")
        written += report.memory_tokens
        for track in memory.state.tracks:
            assert len(track) == written == memory.state.written_tokens
            ages = torch.cat([p.provenance.ages for p in (track.long_term, track.pending, track.short_term)])
            assert sorted(ages.tolist()) == list(range(written))
            assert len(track.short_term) <= TINY.short_term_tokens
            for pool in (track.short_term, track.pending, track.long_term):
                known = pool.provenance.ages
                if layout == "chunk":
                    assert bool((known[:-1] > known[1:]).all())


def test_chunks_stay_whole_in_every_pool(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    track = memory.state.tracks[0]
    seen = [set(p.provenance.chunks.tolist()) for p in (track.short_term, track.pending, track.long_term)]
    assert not seen[0] & seen[1] and not seen[1] & seen[2] and not seen[0] & seen[2]


def test_a_short_tail_waits_and_counts(model: MPlus) -> None:
    memory, empty = model.new_memory(), model.new_memory()
    report = model.write(memory, "Hi!", source="a")
    assert report.text_tokens == 3 and report.memory_tokens == 0
    assert memory.stats().tail_tokens == 3
    assert memory.fingerprint != empty.fingerprint
    request = model.read_request(memory, "Who?")
    assert len(request.state.tracks[0].short_term) == 3
    assert request.state.sources[0].name == "a"
    assert memory.stats().written_tokens == 0
    assert model.generate(memory, "Who?", max_new_tokens=2).prefix_tokens == 4
    assert model.read_request(memory, "Who else?").state is request.state
    model.write(memory, "It goes on now.", source="a")
    assert memory.stats().tail_tokens == 0
    assert memory.state.text_tokens == 3 + 1 + 15


def test_another_source_closes_the_tail_so_that_chunks_have_one_source(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "Hi!", source="a")
    model.write(memory, "A text of another source.", source="b")
    assert [(s.name, s.memory_tokens) for s in memory.sources()] == [("a", 3), ("b", 25)]
    provenance = memory.state.tracks[0].short_term.provenance
    for chunk in provenance.chunks.unique():
        assert len(provenance.sources[provenance.chunks == chunk].unique()) == 1


def test_sources_and_metadata_are_kept(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="book.md", metadata={"page": 3})
    model.write(memory, "An unnamed note about tea.")
    names = {s.name: s for s in memory.sources()}
    assert list(names) == ["book.md", "text-2"]
    assert names["book.md"].metadata == {"page": 3}
    answer = model.generate(memory, "Which box is blue?", max_new_tokens=1)
    assert {r.source for r in answer.recalled} <= set(names)
    assert answer.recalled[0].metadata in ({"page": 3}, {})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "nothing to write"),
        ("   \n", "nothing to write"),
        ([], "nothing to write"),
        (["fine", ""], "nothing to write"),
        ([1, 2, 261], "261 is out of range"),
        ([-1], "-1 is out of range"),
        (["fine", 3], "expected strings"),
    ],
)
def test_bad_text_is_refused_and_nothing_changes(model: MPlus, bad, message: str) -> None:
    memory = model.new_memory()
    model.write(memory, "Something before it all.", source="a")
    before = memory.state
    with pytest.raises(ValueError, match=message):
        model.write(memory, bad, source="b")
    assert memory.state is before


def test_an_empty_source_name_is_refused(model: MPlus) -> None:
    with pytest.raises(ValueError, match="expected a name"):
        model.write(model.new_memory(), "text", source=" ")


def test_a_memory_of_another_model_is_refused(model: MPlus) -> None:
    other = tiny_model(seed=1, memory=TINY)
    memory = other.new_memory()
    with pytest.raises(MemoryMismatchError, match="made by a model"):
        model.write(memory, "Hello there, how are you?")
    with pytest.raises(MemoryMismatchError):
        model.generate(memory, "Hello")
    assert memory.stats().text_tokens == 0


def test_a_write_that_fails_half_way_leaves_the_memory_as_it_was(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text[:300], source="a")
    before, fingerprint = memory.state, memory.fingerprint

    def fail(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.write(memory, text * 8, source="b", progress=fail)
    assert memory.state is before
    assert memory.fingerprint == fingerprint


def test_progress_counts_up_to_the_whole_text(model: MPlus, text: str) -> None:
    seen: list[tuple[int, int]] = []
    model.write(model.new_memory(), text * 3, source="a", progress=lambda done, total: seen.append((done, total)))
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_writing_into_several_memories_at_once_equals_one_by_one(layout: str, text: str) -> None:
    config = TINY if layout == "chunk" else TINY.model_copy(update={"layout": "token", "recall": "attention"})
    model = tiny_model(memory=config)
    other = model.memory_config.model_copy(update={"chunk_tokens": 24, "tokens_per_write": 24})
    alone = [model.new_memory(), model.new_memory(config=other), model.new_memory(), model.new_memory()]
    together = [model.new_memory(), model.new_memory(config=other), model.new_memory(), model.new_memory()]
    for number, memory in enumerate([*alone, *together]):
        if number % 4 != 2:  # what goes on and what begins, side by side
            model.write(memory, text[:130], source="a")
    texts = [text[130:900], text[:50], [text[200:400], text[600:720]], text[130:145]]
    names = ["a", "b", None, "a"]
    expected = [model.write(m, t, source=n) for m, t, n in zip(alone, texts, names, strict=True)]
    counted: list[int] = []
    reports = model.write_batch(together, texts, sources=names, progress=lambda done, total: counted.append(done))
    assert counted == sorted(counted) and len(counted) >= 1
    for one, report, mine, batched in zip(expected, reports, alone, together, strict=True):
        assert replace(report, seconds=0.0) == replace(one, seconds=0.0)
        assert batched.fingerprint == mine.fingerprint
        assert [s.name for s in batched.sources()] == [s.name for s in mine.sources()]
        logits = [prefill(model.weights, [model.read_request(m, "Which box?")]).logits for m in (mine, batched)]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
        for track, known in zip(batched.state.tracks, mine.state.tracks, strict=True):
            assert torch.equal(track.short_term.provenance.ages, known.short_term.provenance.ages)
            assert torch.equal(track.short_term.provenance.chunks, known.short_term.provenance.chunks)
            keys = track.short_term.content.keys[0]
            together = 2 * len(track.layers)  # keys and values of all layers may lie side by side
            assert keys.untyped_storage().nbytes() < 4 * max(together * keys.nbytes, 1000), "no memory holds another's"


def test_several_texts_with_names_of_their_own_are_written_in_one_go_as_one_by_one(text: str) -> None:
    model = tiny_model(memory=TINY)
    alone, together = model.new_memory(), model.new_memory()
    texts, names = [text[:90], "short", text[90:300], "Another."], ["a", "b", "c", "a"]
    abouts = [{"role": role} for role in ("user", "assistant", "user", "user")]
    for one, name, about in zip(texts, names, abouts, strict=True):
        model.write(alone, one, source=name, metadata=about, keep_text=True)
    model.write(together, texts, source=names, metadata=abouts, keep_text=True)
    assert together.fingerprint == alone.fingerprint
    listed = [[(s.name, s.texts, s.metadata) for s in memory.sources()] for memory in (alone, together)]
    assert listed[0] == listed[1] and len(listed[0]) == 3
    model.write(together, ["one more", "text", "text"], source=["text-5", None, None])
    assert [s.name for s in together.sources()][3:] == ["text-5", "text-6", "text-7"]
    before = together.fingerprint
    for wrong, message in (
        ({"source": ["a"]}, "1 names for 2 texts"),
        ({"source": ["a", "b"], "metadata": [{}]}, "1 metadata for 2 texts"),
        ({"source": ["a", " "]}, "source=' '"),
    ):
        with pytest.raises(ValueError, match=message):
            model.write(together, ["one", "two"], **wrong)  # type: ignore[arg-type]
    assert together.fingerprint == before


def test_a_batch_of_writes_that_cannot_be_done_changes_nothing(model: MPlus) -> None:
    memories = [model.new_memory(), model.new_memory()]
    for texts, message in (
        (["one"], "2 memories, 1 texts"),
        (["one", " "], "nothing to write"),
    ):
        with pytest.raises(ValueError, match=message):
            model.write_batch(memories, texts)
    with pytest.raises(ValueError, match="more than once"):
        model.write_batch([memories[0], memories[0]], ["one", "two"])
    with pytest.raises(ValueError, match="source=' '"):
        model.write_batch(memories, ["one", "two"], sources=["a", " "])
    assert [memory.stats().text_tokens for memory in memories] == [0, 0]
