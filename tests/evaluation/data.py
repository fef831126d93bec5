"""Tiny hand-made files of every format."""

import json
from pathlib import Path
from typing import Any


def squad_file(folder: Path, articles: int = 3, paragraphs: int = 4) -> Path:
    data = [
        {
            "title": f"Article {a}",
            "paragraphs": [
                {
                    "context": f"The tower T{a}{p} was built in {1800 + 10 * a + p} by the mason called Mason{a}{p}. It stands on a hill.",
                    "qas": [
                        {
                            "id": f"{a}-{p}-year",
                            "question": f"When was tower T{a}{p} built?",
                            "answers": [{"text": str(1800 + 10 * a + p)}],
                        },
                        {
                            "id": f"{a}-{p}-who",
                            "question": f"Who built tower T{a}{p}?",
                            "answers": [{"text": f"Mason{a}{p}"}, {"text": f"the mason called Mason{a}{p}"}],
                        },
                    ],
                }
                for p in range(paragraphs)
            ],
        }
        for a in range(articles)
    ]
    path = folder / "squad.json"
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return path


def lines_file(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def filler_file(folder: Path, passages: int = 40) -> Path:
    path = folder / "filler.txt"
    path.write_text(
        "\n\n".join(
            " ".join(f"Harbour {n} sees ship {n * 7 + k} arrive and leave with cargo of sort {k}." for k in range(12))
            for n in range(passages)
        ),
        encoding="utf-8",
    )
    return path


TALK: list[dict[str, Any]] = [
    {
        "id": "rosa",
        "kind": "conversation",
        "told": [
            {"role": "user", "text": "Hi, I'm {NAME1} and I live in {TOWN1}. My son is {AGE1}."},
            {"role": "assistant", "text": "Hello {NAME1}!"},
            {"role": "user", "text": "We bring chairs and a grill."},
        ],
        "slots": {"NAME1": ["Rosa", "first name"], "TOWN1": ["Graz", "town"], "AGE1": ["7", "age"]},
        "ask": [
            {
                "q": "whats my name",
                "short": ["{NAME1}"],
                "full": "You are {NAME1}.",
                "after": 0,
                "needs": [0],
                "kind": "what",
            },
            {"q": "and my town?", "short": ["{TOWN1}"], "needs": [0], "kind": "follow-up"},
            {"q": "how old is my son", "short": ["{AGE1}"], "needs": [0], "kind": "how many"},
            {"q": "what do we bring", "short": ["chairs", "grill"], "needs": [2], "kind": "list"},
        ],
        "unknown": ["what is my cat called"],
    },
    {
        "id": "parking",
        "kind": "document",
        "told": ["Parking policy.", "Cars may stay until 18:00."],
        "ask": [{"q": "until when can cars stay", "short": ["18:00", "6 pm"]}],
        "unknown": ["who tows the cars"],
    },
    {
        "id": "list",
        "kind": "note",
        "told": ["milk", "call Jo at 5"],
        "ask": [{"q": "who do i call", "short": ["Jo"]}],
        "unknown": [],
    },
]


def talk_file(folder: Path) -> Path:
    return lines_file(folder, "talk.jsonl", TALK)


def trivia_file(folder: Path) -> Path:
    """Sixty questions, of which some are held out."""
    questions = [{"question": f"Who found island {n}?", "answers": [f"Captain {n}"], "text": ""} for n in range(60)]
    return lines_file(folder, "trivia.jsonl", questions)


LOCOMO = [
    {
        "sample_id": f"conv-{n}",
        "conversation": {
            "speaker_a": "Ada",
            "speaker_b": "Ben",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ada", "dia_id": "D1:1", "text": "I painted a lake.", "blip_caption": "a lake at dusk"},
                {"speaker": "Ben", "dia_id": "D1:2", "text": f"My cat is called Tom{n}."},
            ],
            "session_2_date_time": "9 June, 2023",
            "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "I moved to Graz in 2022."}],
            "session_10_date_time": "10 June, 2023",
            "session_10": [{"speaker": "Ada", "dia_id": "D10:1", "text": "Bye."}],
        },
        "qa": [
            {"question": "When did Ben move?", "answer": 2022, "evidence": ["D2:1"], "category": 2},
            {"question": "Cat's name?", "answer": f"Tom{n}", "evidence": ["D1:2; D2:1"], "category": 1},
            {
                "question": "What is Ada's cat called?",
                "adversarial_answer": f"Tom{n}",
                "evidence": ["D1:2"],
                "category": 5,
            },
        ],
    }
    for n in range(2)
]


def _question(name: str, kind: str, text: str, answer: Any) -> dict[str, Any]:
    """A question of LongMemEval with its history."""
    return {
        "question_id": name,
        "question_type": kind,
        "question": text,
        "answer": answer,
        "question_date": "2023/05/24 (Wed) 09:00",
        "haystack_session_ids": ["chat_7", "answer_1", "chat_7"],
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00", "2023/05/22 (Mon) 11:00"],
        "haystack_sessions": [
            [{"role": "user", "content": "Which bread keeps longest?"}, {"role": "assistant", "content": "Rye."}],
            [
                {"role": "user", "content": "My dog is called Rex.", "has_answer": True},
                {"role": "assistant", "content": "A fine name.", "has_answer": False},
            ],
            [{"role": "user", "content": "And which cheese?"}],
        ],
        "answer_session_ids": ["answer_1"],
    }


LONGMEMEVAL: list[dict[str, Any]] = [
    _question("user-0", "single-session-user", "What is my dog called?", "Rex"),
    _question("user-1", "single-session-user", "Who is Rex?", "Your dog"),
    _question("when-0", "temporal-reasoning", "How many days ago did I name him?", 3),
    _question("cat_abs", "single-session-user", "What is my cat called?", "You did not mention a cat."),
]

AGENT_BENCH: list[dict[str, Any]] = [
    {
        "context": "Here is a list of facts:\n"
        + "\n".join(
            f"{n}. The capital of Land{n % 30} is Town{n}, a town with {n} gates and {n + 1} towers." for n in range(45)
        ),
        "questions": ["What is the capital of Land3?", "What is the capital of Land20?"],
        "answers": [["Town33"], ["Town20", "The town Town20"]],
        "metadata": {"source": "factconsolidation_sh_6k", "qa_pair_ids": ["a", "b"]},
    },
    {
        "context": "Document 1: "
        + "Ships come and go. " * 60
        + "The harbour master is Ida Berg. "
        + "Gulls cry. " * 60,
        "questions": ["Who is the harbour master?"],
        "answers": [["Ida Berg"]],
        "metadata": {"source": "ruler_qa1_197K", "qa_pair_ids": ["c"]},
    },
]

BEAM: dict[str, Any] = {
    "conversation_id": "4",
    "chat": [
        [
            {"id": 0, "role": "user", "content": "The launch is on 14 May.", "time_anchor": "March-15-2024"},
            {"id": 1, "role": "assistant", "content": "Noted.", "time_anchor": None},
            {"id": 2, "role": "user", "content": "Write dates in words."},
            {"id": 3, "role": "assistant", "content": "I will."},
        ],
        [
            {"id": 4, "role": "user", "content": "The launch is on 20 May now.", "time_anchor": "April-02-2024"},
            {"id": 5, "role": "assistant", "content": "Changed."},
        ],
    ],
    "probing_questions": {
        "abstention": [{"question": "Who pays for it?", "ideal_response": "Nothing says who.", "rubric": []}],
        "information_extraction": [{"question": "When was it first?", "answer": "14 May", "source_chat_ids": [0]}],
        "knowledge_update": [
            {
                "question": "When is the launch?",
                "answer": "20 May",
                "source_chat_ids": {"original_info": [0], "updated_info": [4]},
            }
        ],
        "instruction_following": [
            {
                "question": "When do we meet?",
                "expected_compliance": "Dates with the month in words.",
                "source_chat_ids": {"instruction": [2]},
            }
        ],
    },
}
