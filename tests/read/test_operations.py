"""Ceilings of the operations that reads issue, beside transformers over a KV cache of the same size.

32 layers of tiny width: what counts is how often torch is called, which is what a GPU waits for.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, SourceRecord
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.model import MPlus
from mplus.read.prefill import ReadRequest, prefill
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.recall.choose import recall
from mplus.recall.scorer import Question
from mplus.testing import tiny_model
from tests.read.counted import Counted

LAYERS, HEADS, SIZE, CHUNK = 32, 2, 8, 16
CONFIG = MemoryConfig(
    chunk_tokens=CHUNK,
    minimum_chunk_tokens=8,
    tokens_per_write=2 * CHUNK,
    short_term_tokens=20 * CHUNK,
    recalled_tokens=40 * CHUNK,
)
SEGMENTS, PENDING = (400, 400, 400), 80
PROMPT_TOKENS = 40
FIRST_READ_OPERATIONS = 2500
FIRST_READ_KERNELS = 1.3
"""Over transformers' prefill."""


@pytest.fixture(scope="module")
def deep() -> MPlus:
    model = tiny_model(memory=CONFIG, num_hidden_layers=LAYERS)
    assert len(model.weights.bos) == LAYERS, "the same in every read, so made once"
    return model


@pytest.fixture
def state(deep: MPlus) -> Iterator[MemoryState]:
    """A memory of random numbers: three segments in int8, evicted chunks that wait, and short-term memory."""
    generator = torch.Generator().manual_seed(0)
    total, begun = sum(SEGMENTS) + PENDING + CONFIG.short_term_tokens, 0

    def tokens(count: int) -> Tokens:
        nonlocal begun
        number = torch.arange(begun, begun + count)
        begun += count
        keys, values = (
            tuple(torch.randn(count, HEADS, SIZE, generator=generator) for _ in range(LAYERS)) for _ in range(2)
        )
        scored = torch.nn.functional.normalize(torch.randn(count, 48, generator=generator), dim=-1)
        words = (number * 7919 % 97).int()
        known = Provenance(total - 1 - number, torch.ones(count).double(), number // 400, number // CHUNK, words)
        return Tokens(Content(keys, values, scored), known)

    def append(store: LongTermMemory, count: int, dtype: str) -> LongTermMemory:
        new = tokens(count)
        return store.append(Segment.store(new.content, dtype), new.provenance)

    long_term = pending = LongTermMemory.empty()
    for count in SEGMENTS:
        long_term = append(long_term, count, "int8")
    pending = append(pending, PENDING, "auto")
    recent = tokens(CONFIG.short_term_tokens)
    track = replace(deep.weights.empty_state(CONFIG).tracks[0], long_term=long_term, pending=pending, short_term=recent)
    sources = tuple(SourceRecord(f"source {n}", {}, 0.0, 0.0, 400) for n in range(5))
    SPARE_PREFIXES.clear()
    yield MemoryState((track,), digest="of random numbers", sources=sources)
    SPARE_PREFIXES.clear()


def asking(state: MemoryState, seed: int, count: int = PROMPT_TOKENS) -> ReadRequest:
    ids = torch.randint(5, 200, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ReadRequest(state, CONFIG, ids, (0, count))


def theirs(deep: MPlus, rows: int, new: int, held: int, *, unequal: bool = False) -> Counted:
    """What transformers' own model issues for ``new`` tokens behind a KV cache of ``held``."""
    model, cache = deep.weights.backbone.model, DynamicCache()
    for layer in range(LAYERS):
        cache.update(*torch.zeros(2, rows, HEADS, held, SIZE), layer)
    keyword = "cache" if "cache" in model.forward.__annotations__ else "past_key_values"
    given: dict = {keyword: cache}
    if unequal:
        mask = torch.ones(rows, held + new, dtype=torch.long)
        for row in range(rows):
            mask[row, : 3 * row] = 0
        given |= {"attention_mask": mask, "position_ids": mask.sum(dim=1, keepdim=True) - 1}
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode(), Counted() as counted:
            model(torch.full((rows, new), 7), use_cache=True, logits_to_keep=1, **given)
    finally:
        model.set_attn_implementation(before)
    return counted


def test_a_first_read_and_a_repeated_one(deep: MPlus, state: MemoryState) -> None:
    with torch.inference_mode(), Counted() as first:
        step = prefill(deep.weights, [asking(state, 1)])
    held = step.reading.layers[0].lengths[0] - PROMPT_TOKENS
    assert held == 1 + CONFIG.recalled_tokens + CONFIG.short_term_tokens
    del step  # leaves its prefix
    with torch.inference_mode(), Counted() as repeated:
        prefill(deep.weights, [asking(state, 1)])
    with torch.inference_mode(), Counted() as other:
        prefill(deep.weights, [asking(state, 2)])
    plain = theirs(deep, 1, PROMPT_TOKENS, held)
    assert first.operations <= FIRST_READ_OPERATIONS
    assert first.kernels <= FIRST_READ_KERNELS * plain.kernels
    assert repeated.operations <= 1.05 * plain.operations
    assert repeated.kernels <= 1.1 * plain.kernels
    assert other.operations < first.operations, "short-term memory stands already"


def test_a_read_issues_as_many_operations_however_many_chunks_it_recalls(deep: MPlus, state: MemoryState) -> None:
    counts: list[int] = []
    for chunks in (10, 40):
        config = CONFIG.model_copy(update={"recalled_tokens": chunks * CHUNK})
        SPARE_PREFIXES.clear()
        with torch.inference_mode(), Counted() as counted:
            prefill(deep.weights, [replace(asking(state, 3), config=config)])
        counts.append(counted.operations)
    assert counts[1] <= counts[0] + 60, "a few runs more, not a few operations for each chunk and layer"


def test_a_chunk_that_was_encoded_when_needed_is_read_in_all_layers_at_once() -> None:
    ids = CONFIG.model_copy(update={"long_term_keep": "ids"})
    model = tiny_model(memory=ids, num_hidden_layers=LAYERS)
    memory = model.new_memory()
    model.write(memory, [f"Note {number}: the lamp of room {number} is green, they say." for number in range(60)])
    model.warm(memory)
    counts: list[int] = []
    for chunks in (10, 40):
        request = replace(asking(memory.state, 3), config=ids.model_copy(update={"recalled_tokens": chunks * CHUNK}))
        SPARE_PREFIXES.clear()
        with torch.inference_mode(), Counted() as counted:
            prefill(model.weights, [request])
        counts.append(counted.operations)
    assert counts[1] - counts[0] <= LAYERS * 30, "less than one operation for each chunk and layer"


def test_decoding_rows_of_unequal_length(deep: MPlus, state: MemoryState) -> None:
    requests = [asking(state, row, 10 + 3 * row) for row in range(8)]
    reading = prefill(deep.weights, requests).reading
    held = max(reading.layers[0].lengths)
    assert len(set(reading.layers[0].lengths)) == 8
    steps: list[Counted] = []
    for _ in range(3):
        with Counted() as counted:
            reading.decode([7] * 8)
        steps.append(counted)
    assert len({step.operations for step in steps}) == 1, "the same at every step"
    plain = theirs(deep, 8, 1, held, unequal=True)
    assert steps[0].operations <= 1.05 * plain.operations
    assert steps[0].kernels <= plain.kernels
    assert not steps[0].waits
    assert steps[0].operations <= 1.05 * theirs(deep, 8, 1, held).operations, "nor more than rows of equal length take"


def test_growing_joining_and_leaving_keep_the_layers_side_by_side(deep: MPlus, state: MemoryState) -> None:
    first, other = (prefill(deep.weights, [asking(state, seed, 10 + seed)]).reading for seed in (1, 2))
    with Counted() as joining:
        first.join(other)
    with Counted() as leaving:
        first.leave(0)
    assert joining.operations <= 60
    assert leaving.operations <= 20
    with Counted() as before:
        first.decode([7])
    for layer in first.layers:  # as if the buffers were full; they are replaced
        layer.lengths = [layer.key_buffer.shape[2]]
    first.decode([7])
    with Counted() as after:
        first.decode([7])
    assert after.operations == before.operations


def test_recall(deep: MPlus, state: MemoryState) -> None:
    track, weights = state.tracks[0], deep.weights
    words = torch.arange(PROMPT_TOKENS, dtype=torch.int32)
    with torch.inference_mode():
        asked = weights.question(asking(state, 1).input_ids, track.recall_layer)
        question: Question = replace(asked, words=words)
        with Counted() as first:
            recall(weights.scorers[CONFIG.recall], track, CONFIG, question)
        with Counted() as again:
            recall(weights.scorers[CONFIG.recall], track, CONFIG, question)
    assert first.operations <= 300
    assert again.operations <= 260
