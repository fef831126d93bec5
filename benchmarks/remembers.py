"""How much a model remembers: passages and personal facts, asked after many tokens of other text.

    python benchmarks/remembers.py --squad dev.json.gz [--questions 100] [--distractors 20000] [--json out.json]

Passages of the asked questions are written first, then passages of other articles until there are enough
distractor tokens; questions are asked with "Answer in a few words." Facts are generated (dev split, other
names and values than in training), told to one memory per person, followed by the same kind of text, and
asked as a person would. Contains-answer, with a 95% bootstrap interval.
"""

import argparse
import gzip
import json
import random
import time
from pathlib import Path
from typing import Any

import mplus
from mplus.evaluation.facts import persona


def interval(hits: list[bool]) -> str:
    rng = random.Random(0)
    means = sorted(sum(rng.choices(hits, k=len(hits))) / len(hits) for _ in range(2000))
    return f"{sum(hits) / len(hits):.3f} [{means[50]:.3f}, {means[1949]:.3f}] of {len(hits)}"


def contains(answer: str, accepted: list[str]) -> bool:
    return any(a.lower() in answer.lower() for a in accepted)


def passages(path: Path) -> list[dict[str, Any]]:
    packed = path.read_bytes()
    text = gzip.decompress(packed) if path.suffix == ".gz" else packed
    return [
        {"article": n, "text": p["context"], "qas": p["qas"]}
        for n, article in enumerate(json.loads(text)["data"])
        for p in article["paragraphs"]
    ]


def squad(model: mplus.MPlus, known: list[dict[str, Any]], questions: int, distractors: int) -> dict[str, Any]:
    rng = random.Random(1)
    rng.shuffle(known)
    asked = [(p, rng.choice(p["qas"])) for p in known if p["qas"]][:questions]
    memory = model.new_memory()
    for number, (passage, _) in enumerate(asked):
        model.write(memory, passage["text"], source=f"asked-{number}")
    written = 0
    for passage in known[len(asked) :]:
        if written >= distractors:
            break
        written += model.write(memory, passage["text"]).text_tokens
    hits, first, among = [], [], []
    rows: list[dict[str, Any]] = []
    for number, (_, question) in enumerate(asked):
        prompt = [{"role": "user", "content": question["question"] + "\nAnswer in a few words."}]
        answer = model.generate(memory, prompt, max_new_tokens=24)
        accepted = [a["text"] for a in question["answers"]]
        ranked = sorted(answer.recalled, key=lambda r: -r.relevance)
        hits.append(contains(answer.text, accepted))
        first.append(bool(ranked) and ranked[0].source == f"asked-{number}")
        among.append(any(r.source == f"asked-{number}" for r in ranked))
        rows.append({"question": question["question"], "accepted": accepted, "answer": answer.text})
    return {
        "text_tokens": memory.stats().text_tokens,
        "answered": interval(hits),
        "right source recalled first": interval(first),
        "right source recalled": interval(among),
        "rows": rows,
    }


def facts(model: mplus.MPlus, known: list[dict[str, Any]], people: int, distractors: int) -> dict[str, Any]:
    hits: list[bool] = []
    updated: list[bool] = []
    rows: list[dict[str, Any]] = []
    for person in range(people):
        rng = random.Random(1000 + person)
        told = persona(rng, "dev", 12, updated=0.3)
        memory = model.new_memory()
        for place in range(2):
            for number, one in enumerate(told):
                if place < len(one.statements):
                    model.write(memory, f"User: {one.statements[place]}", source=f"fact-{number}-{place}")
        written = 0
        for passage in rng.sample(known, len(known)):
            if written >= distractors:
                break
            written += model.write(memory, passage["text"]).text_tokens
        for one in told:
            answer = model.generate(memory, [{"role": "user", "content": one.fact.question}], max_new_tokens=32)
            right = contains(answer.text, [one.fact.answer])
            hits.append(right)
            if one.earlier is not None:
                updated.append(right)
            rows.append({"said": one.statements, "question": one.fact.question, "answer": answer.text, "right": right})
    return {"answered": interval(hits), "changed values": interval(updated), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--distractors", type=int, default=20_000)
    parser.add_argument("--short-term", type=int)
    parser.add_argument("--recalled", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model)
    changes = {"short_term_tokens": arguments.short_term, "recalled_tokens": arguments.recalled}
    model.memory_config = model.memory_config.model_copy(update={k: v for k, v in changes.items() if v is not None})
    known = passages(arguments.squad)
    found: dict[str, Any] = {"config": model.memory_config.model_dump()}
    for name, work in (
        ("facts", lambda: facts(model, known, arguments.people, arguments.distractors)),
        ("squad", lambda: squad(model, known, arguments.questions, arguments.distractors)),
    ):
        started = time.perf_counter()
        found[name] = work()
        shown = {k: v for k, v in found[name].items() if k != "rows"}
        print(f"{name} ({time.perf_counter() - started:.0f} s): {json.dumps(shown, indent=1)}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
