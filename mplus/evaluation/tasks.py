"""What is asked: questions, the texts that answer them, and the name under which each task is known.

No task ships any third-party text. Every one is read from a file that the user names (``readers/``), except
``facts``, which is generated (``facts_task.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PromptStyle = Literal["plain", "short", "completion"]
"""How a question is put: as it is, with "Answer in a few words.", or as "Question: … Answer:"."""

COMMON = "common"
"""The group of questions that memory has nothing to say to."""


@dataclass(frozen=True)
class Question:
    """A question, and what is known about its answer.

    Attributes:
        id: Its name within the task; the same file and seed give the same names.
        text: As asked.
        answers: Accepted answers; empty where nothing that is written answers it.
        contexts: Names of the texts written for it, in the order of writing.
        gold: Those of them that hold the answer.
        kind: What sort of question it is, such as "updated".
        group: What it is about, such as "document"; empty where a task has one sort only.
        before: Questions that were asked just before it, each with the answer that was given.
        turns: The conversation in which it is asked, as role and text; empty where it is asked in none.
        needs_all: Whether a right answer holds all accepted answers instead of any.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    contexts: tuple[str, ...]
    gold: tuple[str, ...] = ()
    kind: str = ""
    group: str = ""
    before: tuple[tuple[str, str], ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    needs_all: bool = False

    @property
    def is_answerable(self) -> bool:
        """Whether something that is written answers it."""
        return bool(self.answers)


@dataclass(frozen=True)
class Task:
    """Questions with their contexts.

    Attributes:
        name: "squad", "facts", …
        contexts: Texts that questions are about, by name, in the order of writing.
        questions: What is asked.
        spare: Texts of the same file that no question is about: distractors.
        style: How questions are put unless the user says otherwise.
        levels: Distractor tokens at which it is asked unless the user says otherwise.
        modes: Ways of answering unless the user says otherwise.
    """

    name: str
    contexts: Mapping[str, str]
    questions: tuple[Question, ...]
    spare: tuple[str, ...] = ()
    style: PromptStyle = "short"
    levels: tuple[int, ...] = field(default=())
    modes: tuple[str, ...] = ("mplus",)

    def __post_init__(self) -> None:
        for question in self.questions:
            missing = [name for name in question.contexts if name not in self.contexts]
            assert not missing, f"question {question.id} names unknown contexts {missing}"
