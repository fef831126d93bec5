"""How much of the hardware a training step of the read adapter uses.

    python benchmarks/training_step.py [--batch 8 16 32] [--rank 24] [--steps 5] [--device cpu]

One step: a batch of samples of the corpus, each some 400 memory tokens, a question and its answer, forward and
backward.
Beside it in turn transformers' own model, forward and backward over as many tokens, memory and prompt, in rows of equal
length (the loss of the same number of rows), without an adapter: the plain rate. Its share is the plain step's seconds
over ours. Memory tokens are made by the frozen backbone once, so that ours computes only their keys and values: a
share above 1 is possible. ``prompt_share`` compares with a plain step over the prompts alone.
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import report
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import mplus
from mplus.backbone.cpu import computes_bfloat16
from mplus.checkpoint.catalog import resolve
from mplus.config import MemoryConfig
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, new_adapter
from mplus.training.chunk.sample import AsRead, Sample, encode_sample
from mplus.training.talk import as_written, talk_items

MEMORY_TOKENS = 400


def samples_of(model: mplus.MPlus, bank: ChunkBank, count: int) -> list[Sample]:
    """Questions of the corpus, each behind chunks drawn at random."""
    rng = random.Random(0)
    items = [as_written(item) for item in talk_items("dev")]
    found: list[Sample] = []
    while len(found) < count:
        question = rng.choice(rng.choice(items).ask)
        chunks: list[int] = []
        while sum(len(bank.input_ids[chunk]) for chunk in chunks) < MEMORY_TOKENS:
            chunks.append(rng.randrange(len(bank.input_ids)))
        prompt = [{"role": "user", "content": question.q}]
        found.append(encode_sample(model.tokenizer, AsRead(chunks), prompt, question.full))
    return found


def plain_step(plain: Any, rows: int, length: int, targets: int) -> Callable[[], None]:
    """Forward and backward of transformers' model over rows of equal length, the loss of the last tokens of each."""
    ids = torch.randint(3, 1000, (rows, length), device=plain.device)
    plain.get_input_embeddings().weight.requires_grad_(True)

    def step() -> None:
        with torch.autocast(plain.device.type, dtype=torch.bfloat16, enabled=plain.dtype == torch.bfloat16):
            logits: Tensor = plain(input_ids=ids, use_cache=False, logits_to_keep=targets + 1).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -targets:].flatten())
        loss.backward()
        plain.zero_grad(set_to_none=True)

    return step


def our_step(reader: Reader, samples: list[Sample], *, lowered: bool) -> Callable[[], None]:
    """Forward and backward of the read adapter's loss."""

    def step() -> None:
        with torch.autocast(reader.device.type, dtype=torch.bfloat16, enabled=lowered):
            loss = reader.loss(samples).mean()
        loss.backward()
        for leaf in reader.parameters().values():
            leaf.grad = None

    return step


def medians(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Seconds of each step, in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rank", type=int, default=24)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lowered = arguments.device != "cpu" or computes_bfloat16()
    dtype = "bfloat16" if lowered else "float32"
    model = mplus.MPlus.from_pretrained(arguments.model, device=arguments.device, dtype=dtype)
    bank = ChunkBank(model.weights, model.tokenizer, MemoryConfig())
    bank.add([message.text for item in talk_items("dev")[:40] for message in as_written(item).told])
    plain = AutoModelForCausalLM.from_pretrained(resolve(arguments.model), dtype=getattr(torch, dtype))
    plain = plain.to(arguments.device).requires_grad_(False)
    reader = Reader(model.weights, bank, new_adapter(model.weights, ReaderSettings(rank=arguments.rank)))
    reader.drop(0.1)
    rows: list[dict[str, Any]] = []
    for batch in arguments.batch:
        samples = samples_of(model, bank, batch)
        memory = sum(len(bank.input_ids[chunk]) for sample in samples for chunk in sample.chunks)
        prompts = sum(len(sample.input_ids) for sample in samples)
        targets = max(sum(len(sample.input_ids) - sample.target for sample in samples) // batch, 1)
        seconds = medians(
            {
                "ours": our_step(reader, samples, lowered=lowered),
                "plain": plain_step(plain, batch, (memory + prompts) // batch, targets),
                "prompts": plain_step(plain, batch, prompts // batch, targets),
            },
            arguments.steps,
        )
        rows.append(
            {
                "batch": batch,
                "memory_tokens": memory,
                "prompt_tokens": prompts,
                "samples_per_second": batch / seconds["ours"],
                "plain_tokens_per_second": (memory + prompts) / seconds["plain"],
                "share": seconds["plain"] / seconds["ours"],
                "prompt_share": seconds["prompts"] / seconds["ours"],
            }
        )
    report.table(rows)
    report.write("training_step", {"rank": arguments.rank, "dtype": dtype, "rows": rows}, arguments.output)


if __name__ == "__main__":
    main()
