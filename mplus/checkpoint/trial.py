"""The trial of a model at its first load: does memory work with it? No list of names decides.

An empty memory must be the plain model. A memory of one chunk must be the plain model over [bos, chunk, prompt]; where
layers are recurrent, their states begin anew with the prompt. Two chunks must be what the plain model makes of them,
each read alone and placed after the other. The way a model is called is the fastest one that passes.
"""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mplus.backbone.adapters import Adapter, is_merged
from mplus.backbone.backbone import Backbone
from mplus.backbone.llama_layers import LlamaLayers
from mplus.backbone.own_layers import OwnLayers
from mplus.backbone.own_pass import cache_argument
from mplus.backbone.quantised import dense
from mplus.backbone.survey import FAILURES, PASSING, windows_of
from mplus.checkpoint.catalog import cache_root
from mplus.config import MemoryConfig
from mplus.encode import Chunk
from mplus.errors import UnsupportedModelError
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState
from mplus.read.prefill import ReadRequest, prefill
from mplus.recall.late_interaction import LateInteraction
from mplus.weights import Weights
from mplus.write.absorb import write_chunks

TRIAL = 2
"""Number of this trial; models are tried again when it changes."""
TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3, torch.float16: 3e-2}
TOLERANCE_OF_OTHERS = 1e-1
"""Of bfloat16 and of quantised weights."""
ROUNDING, MOST_ROUNDING = 4.0, 0.5
"""How much more than its own two ways of attending differ a model in less than float32 may differ from itself, and how
much at most: logits of a wrong calculation are 0.8 and more apart."""
COMMON = (1_000, 5_000)
"""Ids of the trial: those of rare tokens are barely trained, and make some models err by chance."""
WITH = (
    "an empty memory its logits differ from the plain model's",
    "a memory of one chunk its logits differ from the plain model's over [bos, chunk, prompt]",
    "a memory of two chunks its logits differ from the plain model's over [bos, chunk, chunk, prompt]",
)
CHUNK, PROMPT, DECODED = 9, 8, 2
"""Tokens of a chunk, of the prompt, and of the answer."""

KEPT_FROM = 10_000_000
"""Trials of models with fewer weights are over in an instant, and are not kept in the cache folder."""

Way = Literal["llama", "own"]


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Attributes:
        way: "llama": our loop over layers like Llama's; "own": the model's own forward.
        empty: Difference between an empty memory and the plain model, as a share of the size of its logits.
        chunk: The same of a memory of one chunk; of two chunks, where that is more.
        refused: Why the model is refused; empty if it is not.
        kind: What its layers are: "full", "windows" or "recurrent".
    """

    way: Way
    empty: float
    chunk: float
    refused: str = ""
    kind: str = "full"


class TrainedLayers(NamedTuple):
    """What was trained for a model's layers; the trial itself is of the plain model."""

    write_adapter: Adapter | None = None
    read_adapter: Adapter | None = None
    bos_states: Tensor | None = None
    write_from: int | None = None


class MeasuredDifferenceError(Exception):
    """A model that no way of calling it is exact for, by a difference that was measured."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.refused)
        self.trial = trial


def tried(model: Any, bos_token_id: int, trained: TrainedLayers | None = None) -> tuple[Backbone, Trial]:
    """The backbone of a model, called the fastest way that is exact.

    Args:
        model: A causal language model of transformers.
        bos_token_id: The token at the beginning of every prefix.
        trained: Adapters and bos vectors; only a backbone like Llama carries others than a read adapter. None: none.

    Raises:
        UnsupportedModelError: No way is exact; the message has the difference found.
    """
    identity = _identity(model, bos_token_id)
    known = _TRIED.get(identity) or _kept(identity)
    if known is not None and known.refused:
        raise UnsupportedModelError(known.refused)
    trained = trained or TrainedLayers()
    if known is not None:
        _TRIED[identity] = known
        return _made(model, known.way, bos_token_id, trained), known
    try:
        backbone, found = _first_that_is_exact(model, bos_token_id)
    except MeasuredDifferenceError as error:  # other errors may be those of a moment
        _keep(identity, error.trial, model)
        raise UnsupportedModelError(error.trial.refused) from None
    _keep(identity, found, model)
    if found.way == "llama" and any(part is not None for part in trained):
        backbone = _made(model, found.way, bos_token_id, trained)
    return _reading(backbone, trained), found


def _made(model: Any, way: Way, bos_token_id: int, trained: TrainedLayers) -> Backbone:
    if way == "llama":
        return LlamaLayers.wrap(model, bos_token_id=bos_token_id, **trained._asdict())
    return _reading(OwnLayers.discover(model, bos_token_id=bos_token_id), trained)


def _reading(backbone: Backbone, trained: TrainedLayers) -> Backbone:
    """A backbone of its own layers with the read adapter; one like Llama has it already."""
    if not isinstance(backbone, OwnLayers) or not trained.read_adapter:
        return backbone
    return through_adapter(backbone, trained.read_adapter, write_from=trained.write_from)


def through_adapter(backbone: Backbone, adapter: Adapter, *, write_from: int | None = None) -> Backbone:
    """A backbone that reads through an adapter, which is merged into copies of its layers where these are small.

    Raises:
        CheckpointError: The adapter does not fit the model.
    """
    merge = is_merged(backbone.decoder_layers, adapter)
    return backbone.reading_through(adapter, merge=merge, write_from=write_from)


def _first_that_is_exact(model: Any, bos_token_id: int) -> tuple[Backbone, Trial]:
    config = model.config.get_text_config(decoder=True)
    windows, recurrent = windows_of(config)
    kind = "recurrent" if recurrent else "windows" if windows else "full"
    implementation = model.config._attn_implementation
    if kind == "full" and LlamaLayers.looks_like_llama(model):
        try:
            backbone = LlamaLayers.wrap(model, bos_token_id=bos_token_id)
            found = _compared(backbone, bos_token_id, "llama", kind)
            if not found.refused:
                return backbone, found
        except PASSING:
            raise
        except FAILURES:
            pass  # its parts have Llama's names and take other arguments
    try:
        backbone = OwnLayers.discover(model, bos_token_id=bos_token_id)
        found = _compared(backbone, bos_token_id, "own", kind)
    except UnsupportedModelError:
        model.config._attn_implementation = implementation
        raise
    if found.refused:
        model.config._attn_implementation = implementation
        if math.isfinite(found.empty):
            raise MeasuredDifferenceError(found)
        raise UnsupportedModelError(found.refused)
    return backbone, found


# --- comparisons --------------------------------------------------------------------------------------


def _compared(backbone: Backbone, bos_token_id: int, way: Way, kind: str) -> Trial:
    """A backbone compared with the plain model."""
    name = backbone.model.config.model_type
    found, refused = list[float](), ""
    try:
        with torch.inference_mode(False), torch.no_grad():
            for chunks in (0, 1, 2) if _room_for_two(backbone) else (0, 1):
                found.append(_difference(backbone, bos_token_id, chunks))
                most = _tolerance(backbone.model)
                if not found[-1] <= most:
                    most = max(most, _rounding(backbone, bos_token_id, chunks))
                if not found[-1] <= most:
                    refused = (
                        f"Backbone type {name!r}: with {WITH[chunks]} by {found[-1]:.2g} of their size; expected at "
                        f"most {most:.2g}."
                    )
                    break
    except PASSING:
        raise
    except FAILURES as error:
        return Trial(way, float("nan"), float("nan"), f"Backbone type {name!r} fails its trial: {error}", kind)
    return Trial(way, found[0], max(found[1:], default=float("nan")), refused, kind)


def _tolerance(model: Any) -> float:
    if getattr(model.config, "quantization_config", None) is not None:
        return TOLERANCE_OF_OTHERS
    return TOLERANCE.get(model.dtype, TOLERANCE_OF_OTHERS)


def _room_for_two(backbone: Backbone) -> bool:
    """Whether two chunks and a prompt stand within every window, so that the plain model's cache has all of them."""
    windows, _ = windows_of(backbone.model.config.get_text_config(decoder=True))
    needed = 1 + 2 * CHUNK + PROMPT + DECODED
    return all(window.size is None or window.size > needed for window in windows.values())


def _difference(backbone: Backbone, bos_token_id: int, chunks: int) -> float:
    """How far logits behind a memory of some chunks are from the plain model's."""
    parts, rest = _texts(backbone, chunks)
    return _apart(_with_memory(backbone, parts, rest), _plain(backbone.model, bos_token_id, parts, rest))


def _rounding(backbone: Backbone, bos_token_id: int, chunks: int) -> float:
    """How far a model may be from itself because it rounds: so that large biases are no reason to refuse it.

    It is measured on the plain model, by two kernels of attention, which round otherwise. None is allowed a model in
    float32, which hardly rounds, nor one with a single kernel.
    """
    model = backbone.model
    if model.dtype.itemsize >= 4 or not getattr(model, "_supports_sdpa", False):
        return 0.0
    parts, rest = _texts(backbone, chunks)
    found = _apart(*(_plain(model, bos_token_id, parts, rest, kernel=kernel) for kernel in ("sdpa", "eager")))
    return min(ROUNDING * found, MOST_ROUNDING) if math.isfinite(found) else 0.0


def _texts(backbone: Backbone, chunks: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of some chunks, and of prompt and answer, always the same."""
    drawn, high = torch.Generator().manual_seed(0), backbone.vocabulary_size
    first, last = (COMMON[0], min(high, COMMON[1])) if high > 2 * COMMON[0] else (min(300, high // 4), high)
    ids: list[int] = torch.randint(first, last, (2 * CHUNK + PROMPT + DECODED,), generator=drawn).tolist()
    return [ids[n * CHUNK : (n + 1) * CHUNK] for n in range(chunks)], ids[2 * CHUNK :]


def _apart(ours: Tensor, plain: Tensor) -> float:
    """How far logits are from the plain ones, as a share of the size of these."""
    ours, plain = ours.float().cpu(), plain.float().cpu()
    sound = plain.isfinite() & (plain > torch.finfo(torch.bfloat16).min / 2)
    ours, plain = ours[sound], plain[sound]
    return float((ours - plain).norm() / (plain - plain.mean()).norm().clamp_min(1e-12))


def _with_memory(backbone: Backbone, chunks: Sequence[list[int]], rest: list[int]) -> Tensor:
    """Logits of the rest behind a memory of these chunks, each of another source: prompt, then token by token."""
    weights = _bare(backbone)
    config = MemoryConfig(
        chunk_tokens=16, tokens_per_write=16, short_term_tokens=64, recalled_tokens=0, minimum_chunk_tokens=1
    )
    state: MemoryState = weights.empty_state(config)
    memory = Memory(config, state, model_fingerprint="")
    for number, chunk in enumerate(chunks):
        state, _ = write_chunks(weights, memory, state, [Chunk(chunk, [number] * len(chunk), False)])
    request = ReadRequest(state, config, rest[:PROMPT], (0, PROMPT))
    first = prefill(weights, [request], all_logits=True)
    answer = [first.reading.decode([token]) for token in rest[PROMPT:]]
    return torch.cat([first.logits[0], *answer])


def _bare(backbone: Backbone) -> Weights:
    """Weights that find nothing, but remember."""
    size = backbone.hidden_size
    late = LateInteraction(torch.zeros(backbone.num_layers, size), torch.ones(backbone.num_layers, size))
    return Weights(backbone, {"late": late}, 0, {"late": ""})


def _plain(model: Any, bos: int, chunks: Sequence[list[int]], rest: list[int], *, kernel: str = "eager") -> Tensor:
    """Logits of the rest by the plain model, with its own attention, masks and cache."""
    _, recurrent = windows_of(model.config.get_text_config(decoder=True))
    with _attending(model, kernel):
        if not chunks:
            return _called(model, rest)
        if len(chunks) == 1 and not recurrent:
            return _called(model, [bos, *chunks[0], *rest])[-len(rest) :]
        return _continued(model, bos, chunks, rest)


def _called(model: Any, ids: list[int]) -> Tensor:
    device = model.get_input_embeddings().weight.device
    given = torch.tensor([ids], device="cpu" if device.type == "meta" else device)
    return model(input_ids=given, use_cache=False).logits[0]


def _continued(model: Any, bos: int, chunks: Sequence[list[int]], rest: list[int]) -> Tensor:
    """Logits of the rest behind chunks that were read alone, each at the place where it stands."""
    from transformers.cache_utils import DynamicCache

    config, device = model.config.get_text_config(decoder=True), model.get_input_embeddings().weight.device
    device = torch.device("cpu") if device.type == "meta" else device
    read = partial(_read, model, device)
    kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for number, chunk in enumerate(chunks):
        cache = DynamicCache(config=config)
        read([bos, *chunk], start, cache)
        first = 0 if number == 0 else 1
        for index, layer in enumerate(_layers_of(cache)):
            keys = getattr(layer, "keys", None)
            if keys is not None and keys.numel():
                kept.setdefault(index, []).append((keys[:, :, first:], layer.values[:, :, first:]))
        start += len(chunk)
    cache = DynamicCache(config=config)
    for index, parts in kept.items():
        _layers_of(cache)[index].update(*(torch.cat(each, dim=2) for each in zip(*parts, strict=True)))
    return read(rest, start + 1, cache)


def _layers_of(cache: Any) -> Sequence[Any]:
    return cache.layers


def _read(model: Any, device: torch.device, ids: list[int], start: int, cache: Any) -> Tensor:
    positions = torch.arange(start, start + len(ids), device=device)[None]
    named = {cache_argument(type(model)): cache, "position_ids": positions, "use_cache": True}
    return model(input_ids=torch.tensor([ids], device=device), **named).logits[0]


@contextmanager
def _attending(model: Any, kernel: str) -> Generator[None]:
    """The model with an attention function of transformers'."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = kernel
    try:
        yield
    finally:
        model.config._attn_implementation = implementation


# --- what is kept -------------------------------------------------------------------------------------

_TRIED: dict[str, Trial] = {}


def _identity(model: Any, bos_token_id: int) -> str:
    """Hash of all that a trial depends on."""
    from transformers import __version__

    said: Mapping[str, Any] = model.config.to_dict()
    config = {name: value for name, value in said.items() if name not in ("_name_or_path", "transformers_version")}
    about = [TRIAL, __version__, torch.__version__, bos_token_id, str(model.dtype), model.config._attn_implementation]
    digest = hashlib.sha256(json.dumps([about, config], sort_keys=True, default=str).encode())
    for name, tensor in model.named_parameters():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.device.type != "meta" and tensor.is_floating_point():
            flat = dense(tensor).flatten()
            sample = flat[:: max(len(flat) // 16, 1)][:16].to(device="cpu", dtype=torch.float32)
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:32]


def records() -> Path:
    """Folder of the results of trials."""
    return cache_root() / "trials"


def _keep(identity: str, found: Trial, model: Any) -> None:
    _TRIED[identity] = found
    if sum(parameter.numel() for parameter in model.parameters()) < KEPT_FROM:
        return
    path: str | None = None
    try:
        records().mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=records(), prefix=".")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"trial": TRIAL, **asdict(found)}, file, indent=2)
        Path(path).replace(records() / f"{identity}.json")
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return  # other processes try again
    finally:
        if path is not None:
            Path(path).unlink(missing_ok=True)


def _kept(identity: str) -> Trial | None:
    try:
        record = json.loads((records() / f"{identity}.json").read_text(encoding="utf-8"))
        if record.pop("trial") != TRIAL:
            return None
        found = Trial(**record)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.way in ("llama", "own") else None
