"""What storing long-term memory in fewer bits costs: bytes, recall, logits and answers against float32.

    python benchmarks/quantised.py [--facts 40] [--filler 6000]

One memory is written once, in float32; its long-term content is then stored anew in each dtype, so that every
side holds the same tokens. Per dtype: bytes of a long-term token, the share of float32's recalled tokens that is
recalled too, the relative distance of next-token logits, the share of answers that are word for word the same, and
the share that holds the fact asked for. Facts are generated (dev split); fillers are made of other facts.
"""

import random
from dataclasses import replace
from typing import Any

import report
import torch

import mplus
from mplus.evaluation.facts import make_fact
from mplus.memory.long_term import LongTermMemory
from mplus.memory.tiers import Segment
from mplus.read.prefill import prefill

DTYPES = ("float32", "bfloat16", "int8", "int4")
HINT = "Answer in a few words."


def stored_as(store: LongTermMemory, dtype: Any) -> LongTermMemory:
    """The same tokens in another dtype."""
    devices = tuple(torch.device("cpu") for _ in store.segments[0].keys)
    every = torch.arange(len(store))
    content = store.content(every, torch.float32, devices)
    return LongTermMemory.empty().append(Segment.store(content, dtype), store.provenance)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--filler", type=int, default=6000, help="tokens of other facts around them")
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    rng = random.Random(0)
    asked, kinds = [], set[str]()
    while len(asked) < arguments.facts:
        fact = make_fact(rng, "dev")
        if fact.question not in kinds:
            kinds.add(fact.question)
            asked.append(fact)
    config = model.memory_config.model_copy(update={"long_term_dtype": "float32", "consolidate_every": 1})
    memory = model.new_memory(config=config)
    for fact in asked:
        model.write(memory, fact.statement * 2, source=fact.question)
    fillers = [make_fact(rng, "train").statement for _ in range(arguments.filler // 12)]
    for start in range(0, len(fillers), 10):
        model.write(memory, " ".join(fillers[start : start + 10]), source=f"filler {start}")
    (track,) = memory.state.tracks
    print(f"{len(track.long_term):,} long-term tokens, {len(asked)} questions", flush=True)

    found: dict[str, list[tuple[torch.Tensor, torch.Tensor, str]]] = {}
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        store = stored_as(track.long_term, dtype)
        one = memory.fork()
        one.commit(replace(memory.state, tracks=(replace(track, long_term=store),)))
        found[dtype] = []
        for fact in asked:
            messages = [{"role": "user", "content": f"{fact.question} {HINT}"}]
            step = prefill(model.weights, [model.read_request(one, messages)])
            recalled = step.reading.recalled[0][0].index
            answer = model.generate(one, messages, max_new_tokens=12).text
            found[dtype].append((recalled, step.logits[0, -1], answer))
        exact = found["float32"]
        pairs = list(zip(found[dtype], exact, strict=True))
        mean = lambda values: sum(values) / len(asked)
        rows.append(
            {
                "dtype": dtype,
                "bytes_per_token": store.nbytes // len(store),
                "recall_overlap": mean(float(torch.isin(e[0], q[0]).double().mean()) for q, e in pairs),
                "logit_distance": mean(float((q[1] - e[1]).norm() / e[1].norm()) for q, e in pairs),
                "same_answer": mean(q[2] == e[2] for q, e in pairs),
                "right_answer": mean(
                    fact.answer.lower() in q[2].lower() for fact, (q, _) in zip(asked, pairs, strict=True)
                ),
            }
        )
    report.table(rows)

    def draw(axes: Any) -> None:
        for name in ("recall_overlap", "same_answer", "right_answer"):
            values = [row[name] for row in rows]
            axes.plot([row["bytes_per_token"] for row in rows], values, marker="o", label=name.replace("_", " "))
        axes.set(xlabel="bytes per long-term token", ylabel="share", ylim=(0, 1.02), xscale="log")
        axes.legend()

    report.save("quantised", {"rows": rows, "long_term_tokens": len(track.long_term)}, arguments.output, draw)


if __name__ == "__main__":
    main()
