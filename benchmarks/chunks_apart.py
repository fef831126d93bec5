"""How well chunks are read that were encoded with the chunk before, by themselves, or in windows of a few.

    python benchmarks/chunks_apart.py --squad dev.json.gz --dialogue dev.jsonl.gz --own-talk
        [--questions 40] [--distractors 20000] [--sides previous none 4:1 8:2] [--output results]

The same questions of the same texts, to one memory of each side: "previous", a chunk with the chunk before it, as by
default; "none", by itself, as where token ids are kept; "W:O", in a window of W chunks of one text, of which the first
O overlap with the window before, so that it depends on at most W - 1 chunks before it, however long the text is.
All keep latents. "right" counts answers that contain what was asked for; "both", "alone" and "first_alone" compare
with the first side, question by question. Nothing is timed. ``--model tiny --facts 4`` checks the script itself.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import report
import torch

import mplus
from mplus.encode import Chunk, encode_apart
from mplus.evaluation.data_files import passages
from mplus.evaluation.evaluation_settings import EvaluationSettings
from mplus.evaluation.experiment import read_task
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.question_prompts import prompt
from mplus.evaluation.tasks import Task
from mplus.memory.tokens import Content, Tokens
from mplus.testing import tiny_model
from mplus.training.talk.corpus import talk_files
from mplus.write import absorb
from mplus.write.apart import provenance_of

ANSWER_TOKENS = 24
TOGETHER = 8
"""How many questions are answered in one batch."""
OTHER = "text of others "
"""How names of sources begin that every question may read, beside its own texts."""


class Windows:
    """Encodes a chunk behind those of its window, in place of ``tokens_apart``.

    Args:
        size: Chunks of a window.
        overlap: How many of them are the last ones of the window before.
    """

    def __init__(self, size: int, overlap: int) -> None:
        if not 0 <= overlap < size:
            raise SystemExit(f"--sides {size}:{overlap}: expected W:O with O below W.")
        self.size, self.overlap = size, overlap
        self.text: list[list[int]] = []
        """Chunks of the text that is being written."""
        self.source = -1

    def __call__(self, weights: Any, config: Any, state: Any, chunks: Sequence[Chunk]) -> list[Tokens]:
        """New tokens of every track."""
        ((layers, recall_layer),) = weights.tracks(config)
        parts: list[Content] = []
        for chunk in chunks:
            # Where chunks are encoded apart, none is marked as continuing another: a text is what has one source.
            self.text = [*(self.text if chunk.sources[0] == self.source else []), chunk.input_ids]
            self.source = chunk.sources[-1]
            own = slice(-len(chunk.input_ids), None)
            encoded = encode_apart(weights, [i for ids in self.text[self.first(len(self.text) - 1) :] for i in ids])
            states = tuple(encoded.states[layer][own] for layer in layers)
            base = encoded.base and [encoded.base[layer].take(own) for layer in layers]
            parts.append(weights.content(layers, recall_layer, states, config, base))
        return [Tokens(Content.cat(parts), provenance_of(weights, config, state, chunks))]

    def first(self, place: int) -> int:
        """The first chunk of the window of the chunk at ``place``."""
        step = self.size - self.overlap
        return max(place // step * step - self.overlap, 0)


@contextmanager
def encoding(windows: Windows | None) -> Iterator[None]:
    """Encode chunks apart in windows."""
    before = absorb.tokens_apart
    absorb.tokens_apart = windows or before
    try:
        yield
    finally:
        absorb.tokens_apart = before


def right(model: mplus.MPlus, task: Task, config: mplus.MemoryConfig, more: Sequence[str], windows: Any) -> list[bool]:
    """Which of a task's questions are answered rightly from one memory of all its texts, then further texts."""
    memory = model.new_memory(config=config, seed=0)
    with encoding(windows):
        for name, text in task.contexts.items():
            model.write(memory, text, source=name)
        for number, text in enumerate(more):
            model.write(memory, text, source=f"{OTHER}{number}")
    found: list[bool] = []
    for first in range(0, len(task.questions), TOGETHER):
        some = task.questions[first : first + TOGETHER]
        answers = model.generate_batch(
            [memory] * len(some),
            [prompt(question.text, task.style, before=question.before) for question in some],
            where=[partial(readable, frozenset(question.contexts)) for question in some],
            max_new_tokens=ANSWER_TOKENS,
        )
        found += [contains_answer(answer.text, asked.answers) for answer, asked in zip(answers, some, strict=True)]
    return found


def readable(own: frozenset[str], name: str, _: Any) -> bool:
    """Whether a question may read a source: one of its own texts, or one of others."""
    return name in own or name.startswith(OTHER)


def tasks_of(given: Any) -> dict[str, Task]:
    """The tasks whose files were named, with answerable questions only."""
    files = {"squad": given.squad, "dialogue": given.dialogue, "talk": given.talk}
    wanted: dict[str, Any] = {name: {"data": path} for name, path in files.items() if path is not None}
    if given.facts:
        wanted["facts"] = {"questions": given.facts}
    if given.own_talk:
        wanted["talk"] = {}
    usual = {"questions": given.questions, "unanswerable": 0}
    settings = [EvaluationSettings.model_validate({"task": name} | usual | more) for name, more in wanted.items()]
    return {asked.task: read_task(asked, talk_files(asked.own_split)) for asked in settings}


def others(task: Task, model: mplus.MPlus, given: Any) -> list[str]:
    """Texts to stand between: the task's own spare ones, then those of ``--texts``."""
    texts, tokens = list[str](), 0
    more = [text for path in given.texts for text in passages(path)]
    for text in [*task.spare, *more]:
        if tokens >= given.distractors:
            break
        texts.append(text)
        tokens += model.count_tokens(text)
    return texts


def main() -> None:
    parser = report.parser(__doc__)
    for name in ("squad", "dialogue", "talk"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--own-talk", action="store_true", help="the conversations that the project wrote for dev")
    parser.add_argument("--facts", type=int, default=0, help="ask generated facts too, so many")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="more texts to stand between")
    parser.add_argument("--questions", type=int, default=40, help="of each set")
    parser.add_argument("--distractors", type=int, default=20_000, help="text tokens written after each set's own")
    parser.add_argument("--sides", nargs="+", default=["previous", "none", "4:1", "8:2"], help="how chunks are encoded")
    given = parser.parse_args()
    model = tiny_model() if given.model == "tiny" else mplus.MPlus.from_pretrained(given.model, device="cpu")
    sides = {name: Windows(*map(int, name.split(":"))) if ":" in name else None for name in given.sides}
    rows: list[dict[str, Any]] = []
    for name, task in tasks_of(given).items():
        more = others(task, model, given)
        known: dict[str, list[bool]] = {}
        for side, windows in sides.items():
            changes = {"chunk_context": "previous" if side == "previous" else "none", "long_term_keep": "latents"}
            config = mplus.MemoryConfig.model_validate(model.memory_config.model_dump() | changes)
            known[side] = right(model, task, config, more, windows)
            pairs = list(zip(known[given.sides[0]], known[side], strict=True))
            share = sum(known[side]) / len(pairs)
            rows.append(
                {
                    "set": name,
                    "side": side,
                    "questions": len(pairs),
                    "right": share,
                    "±": 1.96 * math.sqrt(share * (1 - share) / len(pairs)),
                    "both": sum(a and b for a, b in pairs),
                    "alone": sum(b and not a for a, b in pairs),
                    "first_alone": sum(a and not b for a, b in pairs),
                }
            )
            print(rows[-1], flush=True)
            report.write("chunks_apart", {"rows": rows}, given.output)
    print(f"{torch.get_num_threads()} threads")
    report.table(rows)


if __name__ == "__main__":
    main()
