"""The core, side by side with transformers on the same machine in the same run.

    python benchmarks/core.py [--prefix 1024 4096 12800] [--dtype float32] [--decode-dtype auto] [--json core.json]

* write: text tokens per second into memory, over a plain forward of the backbone on the same text;
* prefill: a 32-token question over a full prefix of P tokens, over transformers' own forward with an
  equal ready-made KV cache, logits of the last token on both sides; first, with recall and the whole prefix made
  anew, and again, when the prefix of the read before is there;
* decode: tokens per second after it, over ``transformers.generate`` at equal KV length.

Every pair is measured in turn, and ratios are of medians. float32 unless ``--dtype`` says otherwise, default model.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache

import mplus
from mplus.generation.prompt import Prompt
from mplus.read.prefill import prefill
from mplus.read.spare_prefixes import SPARE_PREFIXES

ANSWER_TOKENS = 24


def in_turn(first: Callable[[], object], second: Callable[[], object], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, measured alternately after one warm-up of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(runs + 1):
        for timed, work in zip(seconds, (first, second), strict=True):
            started = time.perf_counter()
            work()
            if number:
                timed.append(time.perf_counter() - started)
    return seconds


def text_ids(model: mplus.MPlus, count: int) -> list[int]:
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    ids = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def write(model: mplus.MPlus, tokens: int, runs: int) -> dict[str, float]:
    ids = text_ids(model, tokens)
    plain = model.weights.backbone.model
    window = 2048  # a plain forward is quadratic in its length; this is the best it does

    def ours() -> None:
        model.write(model.new_memory(), ids, source="text")

    @torch.inference_mode()
    def theirs() -> None:
        for start in range(0, tokens, window):
            plain.model(torch.tensor([ids[start : start + window]]), use_cache=False)

    mine, other = (statistics.median(s) for s in in_turn(ours, theirs, runs))
    return {
        "tokens": tokens,
        "write_tokens_per_second": tokens / mine,
        "forward_tokens_per_second": tokens / other,
        "ratio": other / mine,
    }


def full_memory(model: mplus.MPlus, prefix: int) -> mplus.Memory:
    """A memory whose reads have a prefix of ``prefix`` tokens: mostly short-term, a fifth recalled."""
    recalled = prefix // 5 // 64 * 64
    config = model.memory_config.model_copy(
        update={"short_term_tokens": prefix - 1 - recalled, "recalled_tokens": recalled}
    )
    memory = model.new_memory(config=config)
    model.write(memory, text_ids(model, prefix + 2 * recalled), source="text")
    return memory


def read(model: mplus.MPlus, prefix: int, runs: int) -> dict[str, float]:
    memory = full_memory(model, prefix)
    question = text_ids(model, 400)[-32:]
    request = model.read_request(memory, Prompt(tuple(question), (0, 32)))
    backbone, plain = model.weights.backbone, model.weights.backbone.model
    length = prefill(model.weights, [request]).reading.layers[0].get_seq_length() - 32
    ready = [
        tuple(
            torch.randn(1, backbone.num_key_value_heads, length, backbone.head_size, dtype=backbone.dtype)
            for _ in range(2)
        )
        for _ in range(backbone.num_layers)
    ]
    implementation = backbone.config._attn_implementation

    def cache() -> DynamicCache:
        made = DynamicCache(config=backbone.config)
        for layer, (keys, values) in enumerate(ready):
            made.update(keys, values, layer)
        return made

    def with_their_attention(work: Callable[[], object]) -> None:
        backbone.config._attn_implementation = "sdpa"
        try:
            work()
        finally:
            backbone.config._attn_implementation = implementation

    @torch.inference_mode()
    def theirs() -> None:
        plain(torch.tensor([question]), past_key_values=caches.pop(), use_cache=True, logits_to_keep=1)

    def ours() -> None:
        prefill(model.weights, [request])

    def forget() -> None:
        SPARE_PREFIXES.clear()
        model.weights._asked.drop_traces()

    first: list[float] = []
    mine: list[float] = []
    other: list[float] = []
    for number in range(runs + 1):
        caches = [cache()]
        forget()
        for timed, work in ((first, ours), (mine, ours), (other, lambda: with_their_attention(theirs))):
            started = time.perf_counter()
            work()
            if number:
                timed.append(time.perf_counter() - started)

    def generate(count: int) -> float:
        made = cache()
        ids = torch.full((1, length + 1), 5)
        begun = time.perf_counter()
        with torch.inference_mode():
            plain.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=made,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - begun

    def generate_both() -> float:
        """Seconds per token; the difference leaves out what generate does once."""
        once = generate(1)
        return (generate(ANSWER_TOKENS + 1) - once) / ANSWER_TOKENS

    decoded: list[float] = []
    generated: list[float] = []
    for number in range(max(runs // 2, 1) + 1):
        reading = prefill(model.weights, [request]).reading
        started = time.perf_counter()
        for _ in range(ANSWER_TOKENS):
            reading.decode([5])
        if number:
            decoded.append((time.perf_counter() - started) / ANSWER_TOKENS)

        backbone.config._attn_implementation = "sdpa"
        seconds = generate_both()
        backbone.config._attn_implementation = implementation
        if number:
            generated.append(seconds)
    result = {
        name: statistics.median(s)
        for name, s in (
            ("first_prefill_seconds", first),
            ("prefill_seconds", mine),
            ("their_prefill_seconds", other),
            ("decode_seconds", decoded),
            ("their_decode_seconds", generated),
        )
    }
    return {
        "prefix": length,
        **result,
        "first_prefill_ratio": result["first_prefill_seconds"] / result["their_prefill_seconds"],
        "prefill_ratio": result["prefill_seconds"] / result["their_prefill_seconds"],
        "decode_ratio": result["their_decode_seconds"] / result["decode_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--prefix", type=int, nargs="+", default=[1024, 4096, 12800])
    parser.add_argument("--write-tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dtype", default="float32", help="of the weights, on both sides")
    parser.add_argument("--decode-dtype", choices=("auto", "int8"), help="of copies with which M+ answers on a CPU")
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(
        arguments.model, device="cpu", dtype=arguments.dtype, decode_dtype=arguments.decode_dtype
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.stdout.strip(),
        "write": write(model, arguments.write_tokens, arguments.runs),
        "read": [read(model, prefix, arguments.runs) for prefix in arguments.prefix],
    }
    w = found["write"]
    print(f"{found['machine']}, torch {found['torch']}, transformers {found['transformers']}, commit {found['commit']}")
    print(
        f"write: {w['write_tokens_per_second']:,.0f} tokens/s, plain forward {w['forward_tokens_per_second']:,.0f}: "
        f"ratio {w['ratio']:.2f} (target 0.75 or more)"
    )
    for r in found["read"]:
        print(
            f"P = {r['prefix']:>6,}: prefill {r['prefill_seconds'] * 1e3:7.0f} ms, theirs "
            f"{r['their_prefill_seconds'] * 1e3:7.0f} ms, ratio {r['prefill_ratio']:.2f} (target 1.5 or less), first "
            f"{r['first_prefill_ratio']:.2f} (target 0.9 or less); decode "
            f"{r['decode_seconds'] * 1e3:6.1f} ms, theirs {r['their_decode_seconds'] * 1e3:6.1f} ms, ratio "
            f"{r['decode_ratio']:.2f} (target 0.9 or more)"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
