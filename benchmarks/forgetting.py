"""What is left of a source that was forgotten, and what of the others.

    python benchmarks/forgetting.py [--model smol-135m] [--people 4] [--facts 25] [--json out.json]

Each person tells so many generated facts (dev split: other names and values than in training), one half under
one source and one half under another, in turns. Then one source is forgotten: plainly, and with a rebuild. The facts of
both are asked before and after, and asked of memories that never had the source, which is the closed-book level.
Contains-answer, with a 95% bootstrap interval, and how many answers are the same word for word.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

import mplus
from mplus.evaluation.personas import Told, persona
from mplus.read.prefill import prefill

SOURCES = ("gone", "kept")


def written(model: mplus.MPlus, told: list[Told], chosen: tuple[str, ...]) -> mplus.Memory:
    memory = model.new_memory()
    for place, one in enumerate(told):
        if SOURCES[place % 2] in chosen:
            model.write(memory, f"User: {one.fact.statement}", source=SOURCES[place % 2])
    return memory


def asked(model: mplus.MPlus, memory: mplus.Memory, told: list[Told]) -> list[str]:
    prompts = [[{"role": "user", "content": one.fact.question}] for one in told]
    return [answer.text for answer in model.generate_batch([memory] * len(prompts), prompts, max_new_tokens=24)]


def interval(hits: list[bool]) -> str:
    rng = random.Random(0)
    means = sorted(sum(rng.choices(hits, k=len(hits))) / len(hits) for _ in range(2000))
    return f"{sum(hits) / len(hits):.2f} [{means[50]:.2f}, {means[1949]:.2f}]"


def logits(model: mplus.MPlus, memory: mplus.Memory, question: str) -> torch.Tensor:
    request = model.read_request(memory, [{"role": "user", "content": question}])
    return prefill(model.weights, [request], all_logits=True).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--facts", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model)
    rows: list[dict[str, Any]] = []
    equal: list[bool] = []
    gaps: list[float] = []
    seconds: list[float] = []
    for person in range(arguments.people):
        told = persona(random.Random(2000 + person), "dev", arguments.facts, updated=0)
        both, never = written(model, told, SOURCES), written(model, told, ("kept",))
        plain, rebuilt = both.fork(), both.fork()
        plain.forget("gone")
        started = time.perf_counter()
        rebuilt.forget("gone", rebuild=model)
        seconds.append(time.perf_counter() - started)
        memories = {"with it": both, "forgotten": plain, "never written": never}
        answers = {name: asked(model, memory, told) for name, memory in memories.items()}
        for place, one in enumerate(told):
            said = {name: texts[place] for name, texts in answers.items()}
            right = {name: one.fact.answer.lower() in text.lower() for name, text in said.items()}
            rows.append({"source": SOURCES[place % 2], "question": one.fact.question, "answers": said, "right": right})
        equal.append(rebuilt.fingerprint == never.fingerprint)
        for one in told[:3]:
            expected = logits(model, never, one.fact.question)
            equal.append(torch.equal(logits(model, rebuilt, one.fact.question), expected))
            gaps.append(float((logits(model, plain, one.fact.question) - expected).abs().max()))
        print(f"{person + 1} of {arguments.people} people asked", flush=True)
    for source in SOURCES:
        mine = [row for row in rows if row["source"] == source]
        for name in ("with it", "forgotten", "never written"):
            print(f"{source}: {name:14} {interval([row['right'][name] for row in mine])} of {len(mine)}")
        for name in ("with it", "never written"):
            same = sum(row["answers"][name] == row["answers"]["forgotten"] for row in mine)
            print(f"{source}: {same} of {len(mine)} answers are the same, forgotten and {name}")
    print(f"rebuilt ({sum(seconds):.1f} s): fingerprints and logits equal those never written: {all(equal)}")
    print(f"plainly forgotten: a logit differs from that of a memory that never had it by at most {max(gaps):.2g}")
    if arguments.json:
        found = {"rows": rows, "rebuilt_equal": all(equal), "largest_difference": max(gaps)}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
