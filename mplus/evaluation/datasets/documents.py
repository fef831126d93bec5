"""Questions about long documents: LongBench and ∞Bench."""

import random
from pathlib import Path

from mplus.evaluation.data_files import answer_texts, field_of, read_records
from mplus.evaluation.datasets.drawing import enough
from mplus.evaluation.tasks import Question, Task


def long_documents(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """JSON lines of LongBench (``context``, ``input``, ``answers``) or ∞Bench (``answer``, ``options``).

    Unanswerable are questions asked of another question's document.
    """
    records = list(read_records(path))
    rng.shuffle(records)
    records = records[: questions + unanswerable]
    enough(path, "questions", questions + unanswerable, len(records))
    documents: dict[str, str] = {}
    for record in records[:questions]:
        documents.setdefault(str(field_of(record, "context", path)), f"document-{len(documents)}")
    found: list[Question] = []
    for place, record in enumerate(records):
        text = str(field_of(record, "input", path)).strip()
        if options := record.get("options"):
            text += "\nOptions: " + "; ".join(map(str, options))
        kind = str(record.get("dataset") or "answerable")
        if place < questions:
            given = record["answers"] if "answers" in record else field_of(record, "answer", path)
            own = (documents[str(record["context"])],)
            found.append(Question(f"q{place}", text, answer_texts(given), own, own, kind))
        else:
            others = [name for context, name in documents.items() if context != record.get("context")]
            if not others:
                raise ValueError(f"{path}: unanswerable questions need a second document, but it has one.")
            found.append(Question(f"unknown{place}", text, (), (rng.choice(others),), (), "unknown"))
    return Task("longdoc", {name: text for text, name in documents.items()}, tuple(found), levels=(0,))
