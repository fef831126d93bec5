"""What runs on a GPU gives what it gives on the CPU. Skipped where there is none."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus.checkpoint.loading import load
from mplus.config import MemoryConfig
from mplus.generation.prompt import Prompt
from mplus.memory import state
from mplus.memory.long_term import LongTermMemory
from mplus.memory.memory import Memory
from mplus.memory.placement import placed
from mplus.memory.precision import Plane
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance
from mplus.memory.transfer import HOST, moved
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.testing import byte_tokenizer, tiny_backbone
from mplus.words import no_words
from tests.conftest import TINY

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
QUESTION = "Which box is blue?"
PUBLISHED = Path(__file__).parent / "golden" / "tiny_mplus"
VOCABULARY = 64
TOKENS = TINY.model_copy(update={"layout": "token", "recall": "attention"})
CLOSE = {"float32": 2e-3, "bfloat16": 5e-2, "int8": 5e-2, "int4": 0.3}
"""How far logits may be apart: a stored number may be rounded to the other side."""


@pytest.fixture
def text() -> str:
    return " ".join(f"Sentence {i} says that box {i * 7 % 13} is {'red' if i % 3 else 'blue'}." for i in range(9))


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(state, "SEGMENT_TOKENS", 64)
    yield
    SPARE_PREFIXES.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_backbone().save_pretrained(made)
    byte_tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def here(folder: Path) -> MPlus:
    return MPlus.from_pretrained(folder, device="cpu", dtype="float32", memory=TINY)


@pytest.fixture(scope="module")
def there(folder: Path) -> MPlus:
    return MPlus.from_pretrained(folder, device="cuda", dtype="float32", memory=TINY)


def written(model: MPlus, config: MemoryConfig, text: str, parts: int = 3) -> Memory:
    memory = model.new_memory(config=config)
    for part in range(parts):
        model.write(memory, f"Part {part}. {text}", source=f"part {part}")
    return memory


def logits_of(model: MPlus, *memories: Memory) -> torch.Tensor:
    requests = [model.read_request(memory, QUESTION) for memory in memories]
    return prefill(model.weights, requests, all_logits=True).logits.float().cpu()


def recalled_of(model: MPlus, memory: Memory) -> list[list[int]]:
    reading = prefill(model.weights, [model.read_request(memory, QUESTION)]).reading
    return [track.provenance.ages.tolist() for track in reading.recalled[0]]


def tiers(memory: Memory) -> set[str]:
    return {segment.tier for track in memory.state.tracks for segment in track.long_term.segments}


@pytest.mark.parametrize("layout", ["chunk", "token"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("tier", ["cpu", "cuda", "disk"])
def test_every_tier_and_dtype_reads_as_on_the_cpu(
    here: MPlus, there: MPlus, text: str, layout: str, dtype: str, tier: str
) -> None:
    base = TINY if layout == "chunk" else TOKENS
    config = base.model_copy(update={"long_term_device": tier, "long_term_dtype": dtype})
    expected, got = written(here, config, text), written(there, config, text)
    assert tiers(got) == {{"cpu": "host", "cuda": "device", "disk": "disk"}[tier]}
    for track in got.state.tracks:
        assert all(device == GPU for device in track.devices)
        for segment in track.long_term.segments:
            assert segment.keys[0].data.device == (GPU if tier == "cuda" else HOST)
            assert segment.retrieval_keys.data.device == (GPU if tier == "cuda" else HOST)
            if tier == "cpu":
                assert segment.keys[0].data.is_pinned()
    if dtype == "float32":
        assert recalled_of(there, got) == recalled_of(here, expected)
    if recalled_of(there, got) == recalled_of(here, expected):
        torch.testing.assert_close(
            logits_of(there, got), logits_of(here, expected), atol=CLOSE[dtype], rtol=CLOSE[dtype]
        )
    # The same content in host memory, on the same device, must give the very same logits.
    other = written(there, config.model_copy(update={"long_term_device": "cpu"}), text)
    torch.testing.assert_close(logits_of(there, got), logits_of(there, other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_segments_beyond_a_budget_move_one_tier_down(here: MPlus, there: MPlus, text: str, layout: str) -> None:
    base = TINY if layout == "chunk" else TOKENS
    whole = written(there, base.model_copy(update={"long_term_device": "cuda"}), text, parts=5)
    total = sum(track.long_term.nbytes for track in whole.state.tracks)
    changes = {
        "long_term_device": "cuda",
        "long_term_device_bytes": total // 3,
        "long_term_host_bytes": total // 3,
    }
    spilled = written(there, base.model_copy(update=changes), text, parts=5)
    assert tiers(spilled) == {"device", "host", "disk"}
    segments = [segment for track in spilled.state.tracks for segment in track.long_term.segments]
    on_device = [segment for segment in segments if segment.keys[0].data.device == GPU]
    assert all(segment.tier == "device" for segment in on_device)
    assert sum(segment.nbytes for segment in on_device) <= total // 3
    expected = logits_of(here, written(here, base, text, parts=5))
    for memory in (whole, spilled):
        torch.testing.assert_close(logits_of(there, memory), expected, atol=2e-3, rtol=2e-3)


def published_reads(device: str | dict[str, Any], **options: Any) -> tuple[MPlus, torch.Tensor, tuple[int, ...]]:
    """The golden checkpoint written to and read: model, logits and an answer."""
    loaded = load(PUBLISHED, device=device, dtype="float32", attention="auto", **options)
    model = MPlus(loaded.weights, byte_tokenizer(), loaded.memory, parts=loaded.parts)
    memory = model.new_memory()
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        model.write(memory, torch.randint(VOCABULARY, (40,), generator=generator).tolist())
    assert all(len(track.long_term) for track in memory.state.tracks)
    backbone = loaded.weights.backbone
    beside = [backbone.layer_device(layer) for layer in range(backbone.num_layers)]
    assert [device for track in memory.state.tracks for device in track.devices] == beside
    prompt = Prompt(tuple(range(20, 40)), (5, 15))
    request = model.read_request(memory, prompt)
    logits = prefill(model.weights, [request], all_logits=True).logits.float().cpu()
    return model, logits, model.generate(memory, prompt, max_new_tokens=6).token_ids


def test_the_published_model_reads_as_on_the_cpu() -> None:
    _, expected, answer = published_reads("cpu")
    _, got, other = published_reads("cuda")
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)
    assert other == answer


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_two_users_are_read_in_one_batch(here: MPlus, there: MPlus, text: str, layout: str) -> None:
    config = TINY if layout == "chunk" else TOKENS
    found: list[tuple[torch.Tensor, list[tuple[int, ...]]]] = []
    for model in (here, there):
        users = [model.new_memory(config=config) for _ in range(2)]
        if layout == "chunk":
            model.write_batch(users, [text, f"Another user. {text[::-1]}"])
        else:
            for user, said in zip(users, [text, f"Another user. {text[::-1]}"], strict=True):
                model.write(user, said)
        # In other letters: of single tokens that are there twice, rounding would decide which are recalled.
        model.write(users[0], f"The first user alone. {text.upper()}")
        batch = logits_of(model, *users)
        for row, user in enumerate(users):
            torch.testing.assert_close(batch[row : row + 1], logits_of(model, user), atol=2e-3, rtol=2e-3)
        answers = model.generate_batch(users, [QUESTION, f"{QUESTION} And which is red?"], max_new_tokens=8)
        found.append((batch, [answer.token_ids for answer in answers]))
    torch.testing.assert_close(found[1][0], found[0][0], atol=2e-3, rtol=2e-3)
    assert found[1][1] == found[0][1]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 1}, {"repetition_penalty": 1.3}])
def test_an_answer_is_streamed(here: MPlus, there: MPlus, text: str, sampling: dict[str, Any]) -> None:
    streams = [m.stream(written(m, TINY, text), QUESTION, max_new_tokens=24, **sampling) for m in (here, there)]
    expected, got = ("".join(stream) for stream in streams)
    assert got == expected
    assert streams[1].generation.token_ids == streams[0].generation.token_ids
    assert streams[1].generation.recalled[0].source == streams[0].generation.recalled[0].source
    assert abs(streams[1].generation.confidence - streams[0].generation.confidence) < 1e-2


def test_a_later_turn_reuses_the_prefix_of_an_earlier_one(there: MPlus, text: str) -> None:
    memory = written(there, TINY, text)
    first = there.generate(memory, QUESTION * 10, max_new_tokens=4)
    again = there.generate(memory, QUESTION * 10, max_new_tokens=4)
    SPARE_PREFIXES.clear()
    fresh = there.generate(memory, QUESTION * 10, max_new_tokens=4)
    assert first.token_ids == again.token_ids == fresh.token_ids


def test_requests_of_several_threads_share_a_batch(there: MPlus, text: str) -> None:
    users = [written(there, TINY, f"User {n}. {text}", parts=1 + n % 3) for n in range(6)]
    alone = [there.generate(user, QUESTION, max_new_tokens=10).token_ids for user in users]
    scheduler = there.serve(max_running=4)
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(scheduler.generate, user, QUESTION, max_new_tokens=10) for user in users]
        assert [answer.result(timeout=60).token_ids for answer in asked] == alone


@pytest.mark.parametrize("tier", ["cpu", "cuda", "disk"])
def test_forks_snapshots_and_forgetting(here: MPlus, there: MPlus, text: str, tier: str) -> None:
    found: list[list[torch.Tensor]] = []
    for model in (here, there):
        memory = written(model, TINY.model_copy(update={"long_term_device": tier}), text)
        before = logits_of(model, memory)
        snapshot, fork = memory.snapshot(), memory.fork()
        model.write(fork, f"Only the fork knows this. {text}", source="fork")
        assert torch.equal(logits_of(model, memory), before)
        memory.forget("part 1")
        after = logits_of(model, memory)
        model.write(memory, f"And more. {text}", source="more")
        memory.rollback(snapshot)
        found.append([before, logits_of(model, fork), after, logits_of(model, memory)])
    for got, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("layout", ["chunk", "token"])
@pytest.mark.parametrize("tier", ["cpu", "cuda", "disk"])
def test_a_memory_goes_from_gpu_to_cpu_and_back(
    here: MPlus, there: MPlus, text: str, tmp_path: Path, layout: str, tier: str
) -> None:
    base = TINY if layout == "chunk" else TOKENS
    memory = written(there, base.model_copy(update={"long_term_device": tier}), text)
    expected = logits_of(there, memory)
    memory.save(tmp_path / "saved")
    on_cpu = Memory.load(tmp_path / "saved", here)
    torch.testing.assert_close(logits_of(here, on_cpu), expected, atol=2e-3, rtol=2e-3)
    here.write(on_cpu, f"On the CPU. {text}")
    expected = logits_of(here, on_cpu)
    on_cpu.save(tmp_path / "saved")
    back = Memory.load(tmp_path / "saved", there)
    torch.testing.assert_close(logits_of(there, back), expected, atol=2e-3, rtol=2e-3)
    there.write(back, f"Back on the GPU. {text}")
    here.write(on_cpu, f"Back on the GPU. {text}")
    torch.testing.assert_close(logits_of(there, back), logits_of(here, on_cpu), atol=2e-3, rtol=2e-3)


def scattered(num_layers: int) -> dict[str, Any]:
    """A device map with every third layer on the GPU, in host memory and on disk."""
    others = {"model.embed_tokens": 0, "model.norm": 0, "model.rotary_emb": 0, "lm_head": "cpu"}
    return others | {f"model.layers.{n}": (0, "cpu", "disk")[n % 3] for n in range(num_layers)}


def test_a_model_larger_than_the_gpu(here: MPlus, folder: Path, text: str, tmp_path: Path) -> None:
    backbone = here.weights.backbone
    where = scattered(backbone.num_layers)
    spread = MPlus.from_pretrained(
        folder, device=where, dtype="float32", memory=TINY, offload_folder=str(tmp_path / "offload")
    )
    for changes in (
        {"long_term_device": "cpu"},
        {"long_term_device": "cuda"},
        {"layout": "token", "recall": "attention"},
    ):
        found: list[tuple[torch.Tensor, tuple[int, ...]]] = []
        for model in (here, spread):
            memory = written(model, TINY.model_copy(update=changes), text)
            backbone = model.weights.backbone
            beside = [backbone.layer_device(layer) for layer in range(backbone.num_layers)]
            assert [device for track in memory.state.tracks for device in track.devices] == beside
            found.append((logits_of(model, memory), model.generate(memory, QUESTION, max_new_tokens=6).token_ids))
        torch.testing.assert_close(found[1][0], found[0][0], atol=2e-3, rtol=2e-3)
        assert found[1][1] == found[0][1]
    weights = {name: weight.device.type for name, weight in spread.weights.backbone.model.named_parameters()}
    assert weights["model.layers.0.self_attn.q_proj.weight"] == "cuda"
    assert weights["model.layers.1.self_attn.q_proj.weight"] == "meta", "brought to the GPU when it is used"


def test_a_published_model_larger_than_the_gpu(tmp_path: Path) -> None:
    whole, expected, answer = published_reads("cpu")
    where = scattered(whole.weights.backbone.num_layers)
    _, got, other = published_reads(where, offload_folder=str(tmp_path / "offload"))
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)
    assert other == answer


def test_embeddings_that_wait_in_host_memory(here: MPlus, folder: Path, text: str) -> None:
    device_map: dict[str, Any] = {"model.embed_tokens": "cpu", "model.norm": 0, "model.rotary_emb": 0, "lm_head": 0}
    device_map |= {f"model.layers.{n}": 0 for n in range(here.weights.backbone.num_layers)}
    spread = MPlus.from_pretrained(folder, device=device_map, dtype="float32", memory=TINY)
    got, expected = (logits_of(model, written(model, TINY, text)) for model in (spread, here))
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


def filled(model: MPlus, config: MemoryConfig, count: int, tier: str) -> Memory:
    """A memory with so many long-term tokens of random content."""
    memory = model.new_memory(config=config)
    tracks = list(memory.state.tracks)
    generator = torch.Generator().manual_seed(0)
    for number, track in enumerate(tracks):
        store = LongTermMemory.empty()
        for start in range(0, count, 4096):
            size = min(4096, count - start)
            content = track.short_term.content
            rows = tuple(torch.randn(size, *k.shape[1:], generator=generator).to(k) for k in content.keys)
            keys = torch.randn(size, *content.retrieval_keys.shape[1:], generator=generator)
            segment = Segment.store(
                Content(rows, rows, torch.nn.functional.normalize(keys, dim=-1)),
                config.resolved_long_term_dtype,
                state.arrival_tier(config),
            )
            every = torch.arange(start, start + size)
            known = Provenance(
                count - 1 - every, torch.ones(size, dtype=torch.float64), every * 0, every // 32, no_words(size)
            )
            store = store.append(segment, known)
        tracks[number] = replace(track, long_term=store)
    stores = placed([track.long_term for track in tracks], config)
    tracks = [replace(track, long_term=store) for track, store in zip(tracks, stores, strict=True)]
    memory.commit(replace(memory.state, tracks=tuple(tracks), written_tokens=count, num_chunks=-(-count // 32)))
    assert tiers(memory) == {tier}
    return memory


@pytest.mark.parametrize("layout", ["chunk", "token"])
@pytest.mark.parametrize(("where", "tier"), [("cpu", "host"), ("disk", "disk")])
def test_device_memory_does_not_grow_with_what_waits_elsewhere(
    there: MPlus, layout: str, where: str, tier: str
) -> None:
    base = TINY if layout == "chunk" else TOKENS
    config = base.model_copy(update={"long_term_device": where, "exact_recall_tokens": 10**7})
    peaks: list[int] = []
    bytes_held: list[int] = []
    for count in (16_384, 131_072):
        memory = filled(there, config, count, tier)
        request = there.read_request(memory, QUESTION)
        last = 0
        for _ in range(2):
            SPARE_PREFIXES.clear()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            prefill(there.weights, [request])
            torch.cuda.synchronize()
            last = torch.cuda.max_memory_allocated() - before
        peaks.append(last)
        bytes_held.append(memory.nbytes)
    # What grows is a score per unit.
    assert peaks[1] - peaks[0] < 0.2 * (bytes_held[1] - bytes_held[0]), (peaks, bytes_held)


def test_successive_reads_take_no_more_device_memory(there: MPlus, text: str) -> None:
    memory = written(there, TINY, text)

    def read() -> None:
        SPARE_PREFIXES.clear()
        there.generate(memory, QUESTION, max_new_tokens=2)

    for _ in range(3):
        read()
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    for _ in range(40):
        read()
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() <= reserved + 4 * 2**20


def test_a_copy_to_host_memory_is_finished_when_it_is_returned() -> None:
    rows = torch.arange(2**24, device=GPU, dtype=torch.float32)
    for step in range(5):
        torch.cuda._sleep(20_000_000)
        got = moved(rows + step, HOST)
        assert bool((got == torch.arange(2**24, dtype=torch.float32) + step).all())


def test_planes_are_the_same_on_both_devices() -> None:
    rows = torch.randn(100, 2, 8)
    index = torch.tensor([5, 3, 99, 0])
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        expected = Plane.store(rows, dtype).rows(index, torch.float32, HOST)
        on_gpu = Plane.store(rows.to(GPU), dtype)
        for plane in (on_gpu, on_gpu.in_host_memory(), on_gpu.take(torch.arange(100))):
            for where in (HOST, GPU):
                got = plane.rows(index, torch.float32, where)
                assert got.device == where
                torch.testing.assert_close(got.cpu(), expected, atol=2e-2, rtol=2e-2)
