"""What a backbone without a read adapter answers: from latents, from recalled text, and with RAG's text in its prompt.

    python benchmarks/without_training.py --squad dev.json.gz [--talk 100] [--facts 60] [--paragraphs 60]

The same questions on three sets of dev text: conversations, notes and documents of ``mplus.training.talk``; facts told
among small talk; SQuAD questions about 20 paragraphs at a time. Texts are written into a memory, message by message,
and each question is asked in a read of its own. RAG has the best passages by MiniLM before the question ("plain"), or
put as M+ puts recalled text ("same"). Of a built-in model it is the backbone alone. Score: the share of answers that
hold an accepted one; its mean over the sets.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import report

import mplus
from mplus.checkpoint import catalog
from mplus.evaluation.data_files import read_json
from mplus.evaluation.facts_task import facts
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.passage_search import MiniLM, cut_passages
from mplus.generation.told import with_told
from mplus.sentences import SentenceEnds
from mplus.training.talk import as_written, talk_items

TOGETHER = 40
PARAGRAPHS_TOGETHER = 20


class Group(NamedTuple):
    """Texts of one memory, by name, and the questions about them with their accepted answers."""

    kind: str
    texts: list[tuple[str, str]]
    asked: list[tuple[str, Sequence[str]]]


def talk(count: int, rng: random.Random) -> Iterator[Group]:
    """Conversations, notes and documents."""
    items = [as_written(item) for item in talk_items("dev")]
    drawn = [(place, question) for place, item in enumerate(items) for question in item.ask]
    rng.shuffle(drawn)
    asked: dict[int, list[tuple[str, Sequence[str]]]] = {}
    for place, question in drawn[:count]:
        asked.setdefault(place, []).append((question.q, question.short))
    for place, questions in asked.items():
        told = items[place].told
        if items[place].kind == "conversation":
            texts = [(f"turn-{n}", f"{m.role.capitalize()}: {m.text}") for n, m in enumerate(told)]
        else:
            texts = [("document", "\n\n".join(message.text for message in told))]
        yield Group("talk", texts, questions)


def told_facts(count: int) -> Iterator[Group]:
    """Facts among small talk, a memory for each person."""
    task = facts(count, 0, 123, split="dev")
    asked: dict[tuple[str, ...], list[tuple[str, Sequence[str]]]] = {}
    for question in task.questions:
        asked.setdefault(question.contexts, []).append((question.text, question.answers))
    for names, questions in asked.items():
        yield Group("facts", [(name, task.contexts[name]) for name in names], questions)


def squad(path: Path, count: int, rng: random.Random) -> Iterator[Group]:
    """Questions about paragraphs, some at a time."""
    paragraphs = [p for article in read_json(path)["data"] for p in article["paragraphs"]]
    rng.shuffle(paragraphs)
    for start in range(0, count, PARAGRAPHS_TOGETHER):
        some = paragraphs[start : start + PARAGRAPHS_TOGETHER]
        pool = [(q["question"], [a["text"] for a in q["answers"]]) for p in some for q in p["qas"]]
        asked = rng.sample(pool, min(PARAGRAPHS_TOGETHER, count - start))
        yield Group("squad", [(f"paragraph-{n}", p["context"]) for n, p in enumerate(some)], asked)


def answered(model: mplus.MPlus, jobs: Sequence[tuple[mplus.Memory, Any]], tokens: int) -> list[str]:
    """Answers to prompts, each with its memory, in batches of like length."""
    order = sorted(range(len(jobs)), key=lambda n: model.count_tokens(jobs[n][1]))
    found = [""] * len(jobs)
    for start in range(0, len(order), TOGETHER):
        some = order[start : start + TOGETHER]
        memories, prompts = zip(*(jobs[n] for n in some), strict=True)
        for n, given in zip(some, model.generate_batch(memories, prompts, max_new_tokens=tokens), strict=True):
            found[n] = given.text
    return found


def from_memory(model: mplus.MPlus, groups: Sequence[Group], read: str) -> list[tuple[mplus.Memory, Any]]:
    """Questions to memories that are read in one way."""
    jobs: list[tuple[mplus.Memory, Any]] = []
    for group in groups:
        memory = model.new_memory(config=model.memory_config.model_copy(update={"read": read}))
        for name, text in group.texts:
            model.write(memory, text, source=name)
        jobs += [(memory, [{"role": "user", "content": question}]) for question, _ in group.asked]
    return jobs


def from_passages(
    model: mplus.MPlus, groups: Sequence[Group], top: int, *, same: bool
) -> list[tuple[mplus.Memory, Any]]:
    """Questions with the best passages by MiniLM in the prompt, the best nearest to the question."""
    ends, nothing = SentenceEnds(model.tokenizer), model.new_memory()
    jobs: list[tuple[mplus.Memory, Any]] = []
    for group in groups:
        passages = [p.text for name, text in group.texts for p in cut_passages(name, text, model.tokenizer, ends)]
        index = MiniLM(passages)
        for question, _ in group.asked:
            best = np.argsort(-index.scores(question, np.arange(len(passages))), kind="stable")[:top]
            texts = [passages[n] for n in reversed(best)]
            plain = [{"role": "user", "content": "\n\n".join([*texts, question])}]
            told = with_told([{"role": "user", "content": question}], "\n".join(texts))
            jobs.append((nothing, told if same else plain))
    return jobs


def main() -> None:
    """Print a row for each way of answering."""
    parser = report.parser(__doc__)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--squad", type=Path, required=True, help="SQuAD JSON")
    for name, count in (("talk", 100), ("facts", 60), ("paragraphs", 60)):
        parser.add_argument(f"--{name}", type=int, default=count, help="questions")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    given = parser.parse_args()
    model = mplus.MPlus.from_pretrained(catalog.resolve(given.model), dtype=given.dtype)
    rng = random.Random(0)
    groups = [*talk(given.talk, rng), *told_facts(given.facts), *squad(given.squad, given.paragraphs, rng)]
    asked = [(group.kind, accepted) for group in groups for _, accepted in group.asked]
    ways = {f"memory, {read}": from_memory(model, groups, read) for read in ("latent", "text")}
    ways |= {
        f"RAG MiniLM top-{top}, {'same' if same else 'plain'}": from_passages(model, groups, top, same=same)
        for top in (1, 2)
        for same in (False, True)
    }
    print(f"{len(asked)} questions; reads: {model.reads.reason}")
    for name, jobs in ways.items():
        right: dict[str, list[bool]] = {}
        for (kind, accepted), answer in zip(asked, answered(model, jobs, given.tokens), strict=True):
            right.setdefault(kind, []).append(contains_answer(answer, accepted))
        shares = {kind: sum(values) / len(values) for kind, values in right.items()}
        row = "  ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
        print(f"{name:28} mean {sum(shares.values()) / len(shares):.3f}  {row}", flush=True)


if __name__ == "__main__":
    main()
