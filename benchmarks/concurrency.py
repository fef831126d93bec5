"""Many users at once over one model: throughput, time to the first token, fairness.

    python benchmarks/concurrency.py [--users 1 4 16] [--rounds 2]

Every user has a memory of his own and asks one question after the other (answers of equal length), through
``model.serve()``. Beside it what the same batch can do at all: transformers decoding as many rows over
ready-made KV caches of the same length, nothing else. Both in the same run, in ``--dtype``.
"""

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import report
import torch
from transformers import DynamicCache

import mplus

QUESTION = "What does the text say about {}? Answer at length."
TOPICS = ("memory", "writing", "reading", "recall", "weights", "chunks", "sources", "forgetting")


def texts(model: mplus.MPlus, users: int, tokens: int) -> list[list[int]]:
    """Another stretch of text for every user."""
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    ids: list[int] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    ids = ids * (tokens // len(ids) + 2)
    return [ids[user * 97 % len(words) : user * 97 % len(words) + tokens] for user in range(users)]


class NeverEnd:
    """Keeps answers equally long: the end token is never taken."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, token_ids: list[int], scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[self.tokens] = float("-inf")
        return scores


def serve(model: mplus.MPlus, memories: list[mplus.Memory], rounds: int, answer_tokens: int) -> dict[str, Any]:
    """Closed loop: every user asks the next question when the last is answered."""
    first_tokens: list[float] = []
    finished: list[float] = []
    never_end = NeverEnd([model.tokenizer.eos_token_id])
    scheduler = model.serve(max_running=len(memories))
    started = time.perf_counter()

    def user(number: int, memory: mplus.Memory) -> None:
        for turn in range(rounds):
            prompt = [{"role": "user", "content": QUESTION.format(TOPICS[(number + turn) % len(TOPICS)])}]
            asked = time.perf_counter()
            stream = scheduler.stream(memory, prompt, max_new_tokens=answer_tokens, processors=[never_end])
            next(stream)
            first_tokens.append(time.perf_counter() - asked)
            for _ in stream:
                pass
            assert stream.generation.completion_tokens == answer_tokens
        finished.append(time.perf_counter() - started)

    threads = [threading.Thread(target=user, args=pair) for pair in enumerate(memories)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    first_tokens.sort()
    return {
        "tokens_per_second": len(memories) * rounds * answer_tokens / seconds,
        "first_token_p50": statistics.median(first_tokens),
        "first_token_p99": first_tokens[min(int(len(first_tokens) * 0.99), len(first_tokens) - 1)],
        # Every user asks for as many tokens, so the slowest's speed over the quickest's is a ratio of times.
        "fairness": min(finished) / max(finished),
    }


@torch.inference_mode()
def ceiling(model: mplus.MPlus, rows: int, prefix: int, tokens: int) -> float:
    """Tokens per second of transformers decoding that many rows over KV caches of that length."""
    backbone, plain = model.weights.backbone, model.weights.backbone.model
    cache = DynamicCache(config=backbone.config)
    for layer in range(backbone.num_layers):
        shape = (rows, backbone.num_key_value_heads, prefix, backbone.head_size)
        cache.update(torch.randn(shape, dtype=backbone.dtype), torch.randn(shape, dtype=backbone.dtype), layer)
    implementation = backbone.config._attn_implementation
    backbone.config._attn_implementation = "sdpa"
    try:
        ids = torch.full((rows, 1), 5)
        plain(ids, **report.cache_argument(plain, cache), use_cache=True)
        started = time.perf_counter()
        for _ in range(tokens):
            ids = plain(ids, **report.cache_argument(plain, cache), use_cache=True).logits[:, -1:].argmax(-1)
        return rows * tokens / (time.perf_counter() - started)
    finally:
        backbone.config._attn_implementation = implementation


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=2, help="questions per user")
    parser.add_argument("--answer-tokens", type=int, default=32)
    parser.add_argument("--memory-tokens", type=int, default=2048, help="text in each user's memory")
    parser.add_argument("--dtype", default="float32", help="of the weights, on both sides")
    parser.add_argument("--decode-dtype", choices=("auto", "int8"), help="of copies that decode on a CPU")
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(
        arguments.model, device="cpu", dtype=arguments.dtype, decode_dtype=arguments.decode_dtype
    )
    memories = [model.new_memory() for _ in range(max(arguments.users))]
    for memory, ids in zip(memories, texts(model, len(memories), arguments.memory_tokens), strict=True):
        model.write(memory, ids, source="text")
    prompt = [{"role": "user", "content": QUESTION.format("memory")}]
    warm = model.generate(memories[0], prompt, max_new_tokens=2)
    prefix = warm.prefix_tokens + warm.prompt_tokens

    rows: list[dict[str, Any]] = []
    for users in arguments.users:
        # As many rounds for few users as make the measurement equally long.
        rounds = arguments.rounds * max(1, 4 // users)
        rows.append({"users": users, **serve(model, memories[:users], rounds, arguments.answer_tokens)})
    # Last, because this thread's helpers would stay and slow the scheduler's.
    for row in rows:
        row["transformers_tokens_per_second"] = ceiling(model, row["users"], prefix, arguments.answer_tokens)
    for row in rows:
        row["speedup"] = row["tokens_per_second"] / rows[0]["tokens_per_second"]
        theirs = rows[0]["transformers_tokens_per_second"]
        row["transformers_speedup"] = row["transformers_tokens_per_second"] / theirs
    report.table(rows)

    def draw(axes: Any) -> None:
        for name, label in (
            ("tokens_per_second", "M+, prefill included"),
            ("transformers_tokens_per_second", "transformers, decode only"),
        ):
            axes.plot([row["users"] for row in rows], [row[name] for row in rows], marker="o", label=label)
        axes.set(xlabel="users at once", ylabel="tokens per second", title="One model, many memories", ylim=(0, None))
        axes.legend()

    report.save("concurrency", {"prefix": prefix, "rows": rows}, arguments.output, draw)


if __name__ == "__main__":
    main()
