"""Text kept as token ids beside text kept as latents: bytes, writing, cold and warm answers, in one run.

    python benchmarks/kept_as_ids.py [--tokens 4096] [--questions 8] [--rounds 3] [--output results]

Three memories get the same text, part by part in turn: "latents" as by default, where a chunk is encoded with the chunk
before it; "latents" of chunks encoded by themselves; "ids" of the same chunks. Times are processor time of this
process, over that of the first. "rows_x_layers" counts what went through a layer when it was written; "equal" says
whether answers, token by token, are those of the second; "right", which of them contain what was asked for.
``--model tiny`` checks the script itself.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

import mplus
import mplus.encode
from mplus.evaluation.facts import Fact
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.personas import persona
from mplus.memory.state import MemoryState
from mplus.memory.tokens import Provenance
from mplus.memory.warm import WarmChunks
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.testing import tiny_model
from mplus.write import absorb

ANSWER_TOKENS = 24
SIDES = {
    "latents": {},
    "latents, chunks apart": {"chunk_context": "none"},
    "ids": {"long_term_keep": "ids"},
}


@dataclass
class Side:
    """One memory and what it took."""

    name: str
    memory: mplus.Memory
    write_seconds: float = 0.0
    rows_by_layers: int = 0
    cold_seconds: float = 0.0
    warm_seconds: float = 0.0
    answers: list[mplus.Generation] = field(default_factory=list[mplus.Generation])


class Counter:
    """Counts rows times layers of every pass that encodes chunks."""

    def __init__(self) -> None:
        self.count, encode = 0, mplus.encode.encode_states

        def counting(weights: Any, chunks: Any, contexts: Any, *, num_layers: int | None = None) -> Any:
            layers = num_layers or weights.backbone.num_layers
            self.count += layers * sum(len(chunk.input_ids) for chunk in chunks)
            return encode(weights, chunks, contexts, num_layers=num_layers)

        mplus.encode.encode_states = absorb.encode_states = counting


def processor_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this process's processor time, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def parts_with(model: mplus.MPlus, tokens: int, facts: Sequence[Fact]) -> list[str]:
    """About so many tokens of text in one part for each fact, which is in the middle of it."""
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in words.split("\n\n") if paragraph.strip()]
    size, parts, at = tokens // len(facts), list[str](), 0
    for fact in facts:
        part: list[str] = []
        while model.count_tokens("\n\n".join(part)) < size if part else True:
            part.append(paragraphs[at % len(paragraphs)])
            at += 1
        part.insert(len(part) // 2, fact.statement)
        parts.append("\n\n".join(part))
    return parts


def host_bytes(state: MemoryState) -> int:
    """Bytes of all tensors of a state, with provenance, places and ledger."""
    (track,) = state.tracks

    def tensors() -> Iterable[Tensor]:
        short = track.short_term.provenance
        yield from (getattr(short, f.name) for f in fields(Provenance))
        yield from (text.input_ids for entry in state.ledger or () for text in entry.texts)
        yield from (() if state.context is None else state.context.states)

    stores = (track.pending, track.long_term)
    columns = sum(s.provenance.nbytes + s.places.segments.nbytes + s.places.rows.nbytes for s in stores)
    return sum(pool.nbytes for pool in track.pools) + columns + sum(tensor.nbytes for tensor in tensors())


def disk_bytes(memory: mplus.Memory) -> int:
    """Bytes of a saved memory."""
    with tempfile.TemporaryDirectory(prefix="mplus-ids-") as folder:
        memory.save(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="times that each question is asked warm")
    given = parser.parse_args()
    tiny = given.model == "tiny"
    model = tiny_model() if tiny else mplus.MPlus.from_pretrained(given.model, device="cpu", dtype="float32")
    facts = [told.fact for told in persona(random.Random(7), "dev", given.questions, updated=0)]
    sides = [
        Side(
            name, model.new_memory(config=mplus.MemoryConfig.model_validate(model.memory_config.model_dump() | changes))
        )
        for name, changes in SIDES.items()
    ]
    model.write(model.new_memory(), "What is done once is not measured. " * 20, source="warm-up")
    counter, tokens = Counter(), 0
    for number, part in enumerate(parts_with(model, given.tokens, facts)):
        for side in sides:
            before = counter.count
            seconds, wrote = processor_time(
                lambda s=side, p=part, n=number: model.write(s.memory, p, source=f"part-{n}")
            )
            side.write_seconds += seconds
            side.rows_by_layers += counter.count - before
        tokens += wrote.text_tokens
    for fact in facts:
        for side in sides:

            def ask(memory: mplus.Memory = side.memory, question: str = fact.question) -> mplus.Generation:
                SPARE_PREFIXES.clear()  # buffers of the read before would make a repeated question cheaper
                messages = [{"role": "user", "content": question}]
                return model.generate(memory, messages, max_new_tokens=ANSWER_TOKENS)

            side.memory.drop_latents()
            seconds, answer = processor_time(ask)
            side.cold_seconds += seconds
            side.answers.append(answer)
            for _ in range(given.rounds):
                # Another short-term pool object, so that no buffers of the read before are used again.
                seconds, _ = processor_time(ask)
                side.warm_seconds += seconds / given.rounds
    plain, apart = sides[0], sides[1]
    rows: list[dict[str, Any]] = []
    for side in sides:
        warm = [track.warm for track in side.memory.state.tracks if isinstance(track.warm, WarmChunks)]
        right = [contains_answer(a.text, [f.answer]) for a, f in zip(side.answers, facts, strict=True)]
        rows.append(
            {
                "side": side.name,
                "write_over_latents": side.write_seconds / plain.write_seconds,
                "rows_x_layers_per_token": side.rows_by_layers / tokens,
                "kB_per_1000_tokens": side.memory.nbytes / tokens,
                "kB_in_host_memory": host_bytes(side.memory.state) / tokens,
                "kB_on_disk": disk_bytes(side.memory) / tokens,
                "encoded_for_reads": sum(room.encoded_tokens for room in warm),
                "cold_over_warm": side.cold_seconds / side.warm_seconds,
                "right": sum(right) / len(right),
                "equal": [a.token_ids for a in side.answers] == [a.token_ids for a in apart.answers],
            }
        )
    print(f"{tokens:,} text tokens, {torch.get_num_threads()} threads")
    report.table(rows)
    report.write("kept_as_ids", {"tokens": tokens, "rows": rows}, given.output)


if __name__ == "__main__":
    main()
