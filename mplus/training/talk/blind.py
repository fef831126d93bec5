"""A second pair of eyes: somebody who sees only the needed messages answers, and the two answers are compared."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mplus.evaluation.metrics import contains_answer
from mplus.training.talk.format import Item
from mplus.training.talk.slots import as_written


def blind_questions(items: Sequence[Item]) -> Iterator[dict[str, object]]:
    """Each question with the messages it needs and nothing else; a follow-up with the question before it."""
    for item in map(as_written, items):
        for i, question in enumerate(item.ask):
            asked: dict[str, object] = {"id": f"{item.id}/{i}"}
            asked["messages"] = [f"{item.told[n].role}: {item.told[n].text}" for n in question.needs]
            if question.kind == "follow-up":
                asked["before"] = f"{item.ask[i - 1].q} - {item.ask[i - 1].full}"
            yield asked | {"q": question.q}


def disagreements(items: Sequence[Item], answers: Path) -> Iterator[str]:
    """Questions that a second writer answered otherwise, or not at all.

    Args:
        items: As their writer wrote them.
        answers: JSON lines, each `{"id": ..., "answer": ...}`, of `blind_questions`.
    """
    lines = (json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n") if line.strip())
    given = {line["id"]: str(line["answer"]) for line in lines}
    for item in map(as_written, items):
        for i, question in enumerate(item.ask):
            answer = given.get(f"{item.id}/{i}", "")
            right = all if question.kind == "list" else any
            if not right(contains_answer(answer, [short]) for short in question.short):
                yield f"{item.id}/{i} {question.q!r}: {list(question.short)}, second writer: {answer!r}"
