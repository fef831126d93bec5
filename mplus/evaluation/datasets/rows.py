"""Questions with their texts, one a line, and common questions without any."""

import random
from pathlib import Path

from mplus.evaluation.common_questions import common_questions
from mplus.evaluation.data_files import answer_texts, field_of, read_records
from mplus.evaluation.datasets.drawing import enough
from mplus.evaluation.facts_task import facts
from mplus.evaluation.metrics import contains_answer, is_short
from mplus.evaluation.tasks import Question, Task


def rows(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """JSON lines of ``text``, ``question`` and ``answers``; lines without a question or an answer are distractors.

    Asked are, where there are any, questions with a short answer that stands in the text. An unanswerable question is
    one whose text is written nowhere; that of another question is.
    """
    records = list(read_records(path))
    askable = [r for r in records if field_of(r, "text", path) and r.get("question") and r.get("answers")]
    fitting = [r for r in askable if contains_answer(str(r["text"]), short_answers(answer_texts(r["answers"])))]
    pool = fitting or askable
    rng.shuffle(pool)
    pool = list({str(record["text"]): record for record in pool}.values())
    enough(path, "texts with questions", questions + unanswerable, len(pool))
    asked, withheld = pool[:questions], pool[questions : questions + unanswerable]
    contexts = {f"text-{place}": str(record["text"]) for place, record in enumerate(asked)}
    found = [
        Question(
            f"q{place}",
            str(record["question"]).strip(),
            answer_texts(record["answers"]),
            (f"text-{place}",),
            (f"text-{place}",),
            str(record.get("source") or record.get("kind") or "answerable"),
        )
        for place, record in enumerate(asked)
    ]
    if withheld and not asked:
        raise ValueError("--questions 0: unanswerable questions are asked of other questions' texts. Ask some.")
    for place, record in enumerate(withheld):
        other = (f"text-{rng.randrange(len(asked))}",)
        found.append(Question(f"unknown{place}", str(record["question"]).strip(), (), other, (), "unknown"))
    kept_out = {str(record["text"]) for record in (*asked, *withheld)}
    spare = dict.fromkeys(text for r in records if (text := str(r["text"])) and text not in kept_out)
    return Task("rows", contexts, tuple(found), tuple(spare), style="plain")


def short_answers(answers: tuple[str, ...]) -> tuple[str, ...]:
    """Those that an answer can be expected to hold word for word."""
    return tuple(answer for answer in answers if is_short(answer))


def common(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Common questions, each beside what a generated person told, and with an empty memory."""
    if unanswerable:
        raise ValueError(f"--unanswerable {unanswerable}: common questions are not about memory. Leave it out.")
    people = facts(50, 0, 0)
    found = common_questions(path, questions, people.questions, rng)
    used = {name for question in found for name in question.contexts}
    contexts = {name: text for name, text in people.contexts.items() if name in used}
    return Task("common", contexts, tuple(found), style="plain", levels=(0,), modes=("mplus", "empty-memory"))
