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
