"""Memories that keep token ids: keys and values are made for reads, bit for bit those that "latents" keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mplus import Memory, MPlus
from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError
from mplus.memory.warm import WarmChunks
from mplus.recall.late_interaction import LateInteraction
from mplus.testing import tiny_model
from tests.memory.saves import QUESTION, logits

SMALL = MemoryConfig(
    chunk_tokens=16,
    minimum_chunk_tokens=4,
    tokens_per_write=16,
    short_term_tokens=32,
    recalled_tokens=48,
    consolidate_every=4,
    chunk_context="none",
)
TEXT = " ".join(f"Box {n} is {['red', 'blue', 'green'][n % 3]} and in room {n * 7 + 100}." for n in range(14))
LAYERS = 4


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=SMALL, num_hidden_layers=LAYERS)


def keeping(keep: str, **changes) -> MemoryConfig:
    return MemoryConfig.model_validate(SMALL.model_dump() | {"long_term_keep": keep} | changes)


def new(model: MPlus, keep: str, **changes) -> Memory:
    return model.new_memory(seed=4, config=keeping(keep, **changes))


def told(model: MPlus, keep: str, **changes) -> Memory:
    """Chunks in long-term memory, pending, in short-term memory and in the tail."""
    memory = new(model, keep, **changes)
    model.write(memory, TEXT, source="boxes")
    model.write(memory, "Anna keeps the blue box in the cellar, since March.", source="anna")
    model.write(memory, "Hi!", source="tail")
    track = memory.state.tracks[0]
    assert len(track.long_term)
    assert len(track.pending)
    assert len(track.short_term)
    assert memory.state.tail.input_ids
    return memory


def room(memory: Memory) -> WarmChunks:
    (track,) = memory.state.tracks
    assert isinstance(track.warm, WarmChunks)
    return track.warm


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Text tokens and layers of every pass that encodes a chunk."""
    import mplus.encode

    counted: list[tuple[int, int]] = []
    encode = mplus.encode.encode_states

    def counting(weights, chunks, contexts, *, num_layers=None):
        tokens = sum(len(chunk.input_ids) for chunk in chunks)
        counted.append((tokens, num_layers or weights.backbone.num_layers))
        return encode(weights, chunks, contexts, num_layers=num_layers)

    monkeypatch.setattr(mplus.encode, "encode_states", counting)
    return counted


@pytest.mark.parametrize("keep", ["ids", "auto"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "int4"])
def test_answers_are_those_of_latents(model: MPlus, keep: str, dtype: str) -> None:
    ours, theirs = (told(model, one, long_term_dtype=dtype) for one in (keep, "latents"))
    expected = logits(model, theirs)
    assert torch.equal(logits(model, ours), expected), "cold"
    assert torch.equal(logits(model, ours), expected), "warm"
    ours.drop_latents()
    assert torch.equal(logits(model, ours), expected), "dropped and made again"
    asked = {"max_new_tokens": 6}
    assert model.generate(ours, QUESTION, **asked).token_ids == model.generate(theirs, QUESTION, **asked).token_ids


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2"])
def test_of_other_backbones_too(model_type: str) -> None:
    model = tiny_model(model_type=model_type, memory=SMALL, num_hidden_layers=2)
    ours, theirs = (new(model, keep, recall_layer=1) for keep in ("ids", "latents"))
    for memory in (ours, theirs):
        model.write(memory, TEXT[:200], source="boxes")
    assert torch.equal(logits(model, ours), logits(model, theirs))


def test_chunks_apart_in_the_token_layout(model: MPlus) -> None:
    memory = model.new_memory(config=keeping("latents", layout="token", recall="late"))
    for n in range(2):
        model.write(memory, TEXT[:100], source=f"{n}")
    assert memory.state.context is None
    assert torch.isfinite(logits(model, memory)).all()


def test_what_is_written_in_pieces_is_what_is_written_at_once(model: MPlus) -> None:
    whole, pieces = new(model, "ids"), new(model, "ids")
    model.write(whole, [TEXT, "More of it."], source="a")
    model.write(pieces, TEXT, source="a")
    logits(model, pieces)
    model.write(pieces, "More of it.", source="a")
    assert torch.equal(logits(model, whole), logits(model, pieces))


def test_a_write_encodes_up_to_the_recall_layer_and_a_read_what_it_needs(
    model: MPlus, passes: list[tuple[int, int]]
) -> None:
    memory = new(model, "ids")
    report = model.write(memory, TEXT, source="boxes")
    layer = memory.state.tracks[0].recall_layer
    assert sum(tokens for tokens, _ in passes) == report.text_tokens
    assert {layers for _, layers in passes} == {layer + 1}
    assert layer + 1 < LAYERS

    passes.clear()
    logits(model, memory)
    state = memory.state
    read = len(state.tracks[0].short_term) + SMALL.recalled_tokens
    assert 0 < sum(tokens for tokens, _ in passes) <= read
    assert {layers for _, layers in passes} == {LAYERS}
    assert room(memory).encoded_tokens == sum(tokens for tokens, _ in passes)

    passes.clear()
    logits(model, memory)
    assert not passes, "the second read is warm"


def test_auto_encodes_at_once_while_there_is_room(model: MPlus, passes: list[tuple[int, int]]) -> None:
    memory = new(model, "auto")
    model.write(memory, TEXT, source="boxes")
    assert {layers for _, layers in passes} == {LAYERS}
    passes.clear()
    expected = logits(model, memory)
    assert not passes
    small = new(model, "auto", long_term_latent_bytes=40 * model.weights.latent_bytes)
    model.write(small, TEXT, source="boxes")
    layers = [layers for _, layers in passes]
    assert LAYERS in layers
    assert min(layers) < LAYERS
    assert torch.equal(logits(model, small), expected)


@pytest.mark.parametrize("chunks", [0, 2])
def test_no_more_bytes_are_held_than_allowed(model: MPlus, chunks: int) -> None:
    most = chunks * SMALL.chunk_tokens * model.weights.latent_bytes
    memory = told(model, "ids", long_term_latent_bytes=most)
    expected = logits(model, told(model, "latents"))
    for _ in range(2):
        assert torch.equal(logits(model, memory), expected)
        assert room(memory).room <= most
        assert len(room(memory)) <= 4 * chunks
    assert len(room(memory)) >= chunks


def test_the_least_recently_used_go_first() -> None:
    from mplus.memory.tiers import Segment

    def chunk() -> Segment:
        rows = (torch.zeros(1, 1, 4),)
        return Segment.of_latents(rows, rows, "auto", "host")

    held = WarmChunks("int8", "host", 2 * chunk().nbytes)
    held.put(b"a", "auto", chunk())
    held.put(b"b", "auto", chunk())
    held.get(b"a", "auto")
    held.put(b"c", "auto", chunk())
    assert held.get(b"b", "auto") is None
    assert held.get(b"a", "auto") is not None
    assert held.nbytes == 2 * chunk().nbytes


# --- bytes --------------------------------------------------------------------------------------------


def test_bytes_of_a_text_token(tmp_path: Path) -> None:
    """With as many retrieval dimensions as the default model: 96. The number of layers does not matter.

    What is pending, up to 1,024 tokens, has retrieval keys of four times the size; here that is one chunk.
    """
    model = tiny_model(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=2)
    config = MemoryConfig(long_term_keep="ids", recall_layer=0, short_term_tokens=64, consolidate_every=1)
    memory = model.new_memory(config=config)
    before = on_disk(memory, tmp_path / "before")
    report = model.write(memory, "".join(f"The {n} th box stands in room {n * 7}. " for n in range(400)), source="a")
    assert report.text_tokens > 10_000
    assert on_disk(memory, tmp_path / "after") - before <= 120 * report.text_tokens
    assert memory.stats().nbytes <= 120 * report.text_tokens
    assert memory.stats().warm_nbytes == 0


def test_bytes_of_a_text_token_of_a_model_of_another_shape(tmp_path: Path) -> None:
    """Eight key-value heads of 128, as Llama-3.1-8B has them, and a projection to 256 numbers."""
    model = tiny_model(hidden_size=1024, num_attention_heads=8, num_key_value_heads=8, head_dim=128)
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(256, 1024, generator=generator) for _ in range(2))
    late = model.weights.scorers["late"]
    assert isinstance(late, LateInteraction)
    scorer = LateInteraction(late.mean, late.deviation, query_projection=query, key_projection=key)
    weights = replace(model.weights, scorers={**model.weights.scorers, "late": scorer.requires_grad_(False)})
    model = MPlus(weights, model.tokenizer, model.memory_config, reads=model.reads)
    config = MemoryConfig(long_term_keep="ids", recall_layer=0, short_term_tokens=64, consolidate_every=1)
    memory = model.new_memory(config=config)
    before = on_disk(memory, tmp_path / "before")
    report = model.write(memory, "".join(f"The {n} th box stands in room {n * 7}. " for n in range(400)), source="a")
    assert on_disk(memory, tmp_path / "after") - before <= 300 * report.text_tokens
    assert memory.stats().nbytes <= 300 * report.text_tokens


def on_disk(memory: Memory, folder: Path) -> int:
    memory.save(folder)
    return sum(file.stat().st_size for file in folder.iterdir())


# --- what else a memory does ----------------------------------------------------------------------------


def test_saved_and_opened_it_answers_as_before(model: MPlus, tmp_path: Path) -> None:
    memory = told(model, "ids")
    expected = logits(model, memory)
    assert memory.stats().warm_nbytes
    memory.save(tmp_path)
    names = {file.name.partition("-")[0] for file in tmp_path.iterdir()}
    assert names <= {"memory.json", "records", "state", "tokens", ".lock"}
    again = Memory.load(tmp_path, model)
    assert again.stats().warm_nbytes == 0, "what can be made again is not saved"
    assert again.fingerprint == memory.fingerprint
    assert torch.equal(logits(model, again), expected)
    model.write(again, "One more box is blue.", source="more")
    model.write(memory, "One more box is blue.", source="more")
    assert torch.equal(logits(model, again), logits(model, memory))
    again.export(tmp_path / "one.mplus")
    assert torch.equal(logits(model, Memory.load(tmp_path / "one.mplus", model)), logits(model, again))


def test_what_is_saved_is_checked(model: MPlus, tmp_path: Path) -> None:
    from mplus.memory.mapped import opened_segment
    from mplus.storage.shards import OpenShard, write_shard

    like = new(model, "ids").state.tracks[0].short_term.content
    keys = torch.zeros(3, like.retrieval_keys.shape[1])
    for ids, expected in [
        (torch.zeros(3, dtype=torch.int64), "input_ids is torch.int64"),
        (torch.zeros(2, dtype=torch.int32), "input_ids has shape"),
        (None, "input_ids has shape None"),
    ]:
        tensors = {"retrieval_keys": keys} | ({} if ids is None else {"input_ids": ids})
        path = tmp_path / "tokens-x.safetensors"
        with path.open("wb") as file:
            written = write_shard(file, path.name, tensors, None)
        with pytest.raises(CorruptMemoryError, match=expected):
            opened_segment(OpenShard(path, written), like, name="x")


def test_ids_that_the_model_does_not_have_are_refused(model: MPlus) -> None:
    memory = new(model, "ids")
    model.write(memory, "Box 7 is blue and red.", source="a")
    ids = memory.state.tracks[0].short_term.content.input_ids
    assert ids is not None
    ids[0] = 10**6
    with pytest.raises(CorruptMemoryError, match="1000000"):
        logits(model, memory)


@pytest.mark.parametrize("is_read", [False, True])
def test_forgetting_leaves_a_memory_that_never_had_it(model: MPlus, is_read: bool) -> None:
    with_it, without = new(model, "ids", long_term_dtype="float32"), new(model, "ids", long_term_dtype="float32")
    for memory in (with_it, without):
        model.write(memory, TEXT, source="boxes")
    model.write(with_it, "The secret is that Anna keeps the blue box in the cellar.", source="secret")
    snapshot = with_it.snapshot()
    if is_read:
        logits(model, with_it)
    forked = with_it.fork()
    assert with_it.forget("secret") > 0
    assert room(with_it).nbytes == 0
    assert torch.equal(logits(model, with_it), logits(model, without))
    assert all(room_of.warm is room(with_it) for s in with_it.snapshots for room_of in s.state.tracks)
    with_it.rollback(snapshot)
    assert torch.equal(logits(model, with_it), logits(model, without))
    assert [s.name for s in forked.sources()] == ["boxes", "secret"]
    assert room(forked) is not room(with_it)


def test_rebuilding_is_the_same_and_holds_nothing(model: MPlus) -> None:
    rebuilt, forgot = told(model, "auto"), told(model, "auto")
    logits(model, rebuilt)
    rebuilt.forget("anna", rebuild=model)
    forgot.forget("anna")
    assert room(rebuilt).nbytes == room(forgot).nbytes == 0
    never = new(model, "auto")
    model.write(never, TEXT, source="boxes")
    model.write(never, "Hi!", source="tail")
    assert torch.equal(logits(model, rebuilt), logits(model, never))


def test_what_is_past_the_age_limit_is_not_held(model: MPlus) -> None:
    memory = new(model, "ids", age_limit_tokens=60)
    model.write(memory, "Box 1 is blue and stands here.", source="old")
    logits(model, memory)
    held = room(memory)
    assert len(held)
    for n in range(6):
        model.write(memory, f"Other text, number {n}, about boxes that are red.", source=f"new-{n}")
    logits(model, memory)
    assert "old" not in [s.name for s in memory.sources()]
    from mplus.memory.warm import chunk_key

    old = model.tokenizer("Box 1 is blue and stands here.").input_ids
    keys = {chunk_key(torch.tensor(old[:16], dtype=torch.int32)), chunk_key(torch.tensor(old[16:], dtype=torch.int32))}
    assert keys & {key for key, _ in held._held}
    assert not keys & {key for key, _ in room(memory)._held}


def test_a_waiting_tail_is_not_held_for_later(model: MPlus) -> None:
    for keep in ("ids", "auto"):
        memory = new(model, keep)
        model.write(memory, "Hi!", source="tail")
        first = logits(model, memory)
        assert len(room(memory)) == 0
        assert torch.equal(logits(model, memory), first)


def test_a_full_memory_keeps_whole_chunks(model: MPlus) -> None:
    memory = new(model, "ids", long_term_capacity=40)
    model.write(memory, TEXT, source="boxes")
    track = memory.state.tracks[0]
    assert 0 < len(track.long_term) <= 40
    sizes = track.long_term.provenance.chunks.unique_consecutive(return_counts=True)[1]
    whole = new(model, "ids")
    model.write(whole, TEXT, source="boxes")
    known = whole.state.tracks[0].long_term.provenance.chunks
    assert all(
        int(size) == int((known == chunk).sum())
        for chunk, size in zip(track.long_term.provenance.chunks.unique(), sizes, strict=True)
    )
    assert torch.isfinite(logits(model, memory)).all()


def test_forks_share_what_was_made(model: MPlus, passes: list[tuple[int, int]]) -> None:
    memory = told(model, "ids")
    expected = logits(model, memory)
    passes.clear()
    fork = memory.fork()
    assert torch.equal(logits(model, fork), expected)
    assert sum(tokens for tokens, layers in passes if layers == LAYERS) <= len(memory.state.tail.input_ids)
    model.write(fork, "The fork alone has a yellow box.", source="fork")
    assert torch.equal(logits(model, memory), expected)


def test_memories_read_together_keep_their_own(model: MPlus) -> None:
    for ours, theirs in (("ids", "ids"), ("ids", "latents"), ("latents", "ids")):
        mixed = [told(model, ours), told(model, theirs)]
        plain = [told(model, "latents"), told(model, "latents")]
        assert torch.equal(logits(model, mixed), logits(model, plain))
        again = room(mixed[0] if ours == "ids" else mixed[1]).encoded_tokens
        logits(model, mixed)
        assert room(mixed[0] if ours == "ids" else mixed[1]).encoded_tokens == again


def test_warming_makes_the_newest_until_there_is_no_room(model: MPlus, passes: list[tuple[int, int]]) -> None:
    memory = told(model, "ids")
    passes.clear()
    assert model.warm(memory, seconds=0.0) > 0, "short-term memory"
    assert model.warm(memory) > 0
    assert model.warm(memory) == 0
    passes.clear()
    memory.drop_latents()
    small = told(model, "ids", long_term_latent_bytes=50 * model.weights.latent_bytes)
    assert 0 < model.warm(small) < len(memory.state.tracks[0])
    assert model.warm(told(model, "latents")) == 0


def test_content_on_disk_is_read_from_there(model: MPlus) -> None:
    ours, theirs = (told(model, keep, long_term_device="disk") for keep in ("ids", "latents"))
    assert {s.tier for s in ours.state.tracks[0].long_term.segments} == {"disk"}
    assert torch.equal(logits(model, ours), logits(model, theirs))


def test_a_reset_memory_holds_nothing(model: MPlus) -> None:
    memory = told(model, "auto")
    logits(model, memory)
    memory.reset()
    assert memory.stats().nbytes == memory.stats().warm_nbytes == 0
    assert room(memory) is not room(model.new_memory(config=memory.config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "token"}, 'layout="token" keeps single tokens'),
        ({"chunk_context": "previous"}, 'chunk_context="previous"'),
        ({"keep_states": True}, "keep_states=True"),
    ],
)
def test_what_cannot_be_made_again_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryConfig.model_validate({"long_term_keep": "ids"} | changes)


def test_a_write_adapter_has_a_context() -> None:
    with pytest.raises(ValueError, match='chunk_context="none"'):
        MemoryConfig.model_validate(MemoryConfig.published().model_dump() | {"chunk_context": "none"})


def test_keeping_latents_is_the_default_with_the_chunk_before() -> None:
    assert not MemoryConfig().keeps_ids
    assert not MemoryConfig().encodes_apart
