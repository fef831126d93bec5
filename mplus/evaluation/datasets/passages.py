"""Questions about short passages: SQuAD and Natural Questions."""

import random
from pathlib import Path
from typing import Any

from mplus.evaluation.data_files import answer_texts, field_of, read_json, read_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task


def squad(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """SQuAD JSON: a question is about its paragraph; a few paragraphs more can be asked for in vain.

    An unanswerable question is one whose own paragraph is written nowhere; another one of its article is.
    """
    paragraphs: list[tuple[int, str, list[tuple[str, tuple[str, ...]]]]] = []
    for number, article in enumerate(field_of(read_json(path), "data", path)):
        for paragraph in field_of(article, "paragraphs", path):
            asked = [
                (item["question"].strip(), tuple(dict.fromkeys(a["text"] for a in item["answers"])))
                for item in paragraph["qas"]
                if item["answers"]
            ]
            paragraphs.append((number, paragraph["context"], asked))
    rng.shuffle(paragraphs)
    hidden = [place for place, paragraph in enumerate(paragraphs) if paragraph[2]][:unanswerable]
    withheld = [paragraphs[place] for place in hidden]
    paragraphs = [paragraph for place, paragraph in enumerate(paragraphs) if place not in set(hidden)]
    pairs = spread([[(place, qa) for qa in p[2]] for place, p in enumerate(paragraphs)], questions, rng)
    enough(path, "questions", questions, len(pairs))
    enough(path, "paragraphs to withhold for unanswerable questions", unanswerable, len(withheld))
    contexts: dict[str, str] = {}
    found: list[Question] = []
    for place, (text, answers) in pairs:
        name = f"paragraph-{place}"
        contexts[name] = paragraphs[place][1]
        found.append(Question(f"q{len(found)}", text, answers, (name,), (name,), "answerable"))
    used = {place for place, _ in pairs}
    for number, (article, _, asked) in enumerate(withheld):
        siblings = [place for place, p in enumerate(paragraphs) if p[0] == article] or list(range(len(paragraphs)))
        place = rng.choice(siblings)
        used.add(place)
        contexts.setdefault(f"paragraph-{place}", paragraphs[place][1])
        found.append(Question(f"unknown{number}", rng.choice(asked)[0], (), (f"paragraph-{place}",), (), "unknown"))
    spare = tuple(p[1] for place, p in enumerate(paragraphs) if place not in used)
    return Task("squad", contexts, tuple(found), spare, style="plain")


def natural_questions(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """JSON lines with ``question``, ``answers`` and ``ctxs``: the first context answers, further ones are distractors.

    An unanswerable question is one whose own context is written nowhere; that of another question is.
    """
    records = [record for record in read_records(path) if field_of(record, "answers", path)]
    enough(path, "questions", questions + unanswerable, len(records))
    rng.shuffle(records)
    asked, withheld = records[:questions], records[questions : questions + unanswerable]
    contexts = {f"context-{place}": _with_title(record, path) for place, record in enumerate(asked)}
    found = [
        Question(
            f"q{place}",
            str(field_of(record, "question", path)).strip(),
            answer_texts(record["answers"]),
            (f"context-{place}",),
            (f"context-{place}",),
            "answerable",
        )
        for place, record in enumerate(asked)
    ]
    if withheld and not asked:
        raise ValueError("--questions 0: unanswerable questions are asked of other questions' contexts. Ask some.")
    for number, record in enumerate(withheld):
        other = f"context-{rng.randrange(len(asked))}"
        found.append(Question(f"unknown{number}", str(record["question"]).strip(), (), (other,), (), "unknown"))
    kept = set(contexts.values())
    hidden = {_with_title(record, path) for record in withheld}
    spare = [_titled(context) for record in asked for context in record["ctxs"][1:]]
    spare += [_with_title(record, path) for record in records[questions + unanswerable :]]
    kept_out = kept | hidden
    others = tuple(text for text in dict.fromkeys(spare) if text not in kept_out)
    return Task("nq", contexts, tuple(found), others, style="plain")


def _with_title(record: dict[str, Any], path: Path) -> str:
    contexts = field_of(record, "ctxs", path)
    if not contexts or "text" not in contexts[0]:
        raise ValueError(f"{path}: question {record.get('question')!r:.60} has no ctxs[0].text.")
    return _titled(contexts[0])


def _titled(context: dict[str, Any]) -> str:
    """A context with its title in front, which often names what "it" and "he" in the text are."""
    title = str(context.get("title") or "").strip()
    return f"{title}\n{context['text']}" if title else str(context["text"])
