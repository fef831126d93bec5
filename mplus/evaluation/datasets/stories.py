"""Questions about little stories: bAbI."""

import random
import re
import tarfile
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

from mplus.evaluation.data_files import read_text
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task

DIRECTIONS = {"n": "north", "s": "south", "e": "east", "w": "west"}
ASKED = re.compile(r"(.*?)\s*[\t|]([^\t|]*)(?:[\t|][\d ]*)?")
"""A question with its answer and the numbers of what says it; some copies have a bar for each tab."""
Story = tuple[list[str], list[tuple[int, str, tuple[str, ...]]]]
"""Statements, and questions with how many of them come before."""


def babi(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Stories of bAbI: a file of numbered lines, a folder of them, or the archive (its test files).

    One question of each story is asked, after the statements that come before it. None is unanswerable.
    """
    if unanswerable:
        raise ValueError(f"--unanswerable {unanswerable}: every question of bAbI has an answer. Leave it out.")
    contexts: dict[str, str] = {}
    by_file: list[list[Question]] = []
    for name, text in _files(path):
        mine: list[Question] = []
        for number, (statements, asked) in enumerate(_stories(text, f"{path}, {name}")):
            count, question, answers = rng.choice(asked)
            source = f"{name}/story-{number}"
            contexts[source] = " ".join(statements[:count])
            mine.append(Question(source, question, answers, (source,), (source,), name))
        if not mine:
            raise ValueError(f"{path}, {name}: no question in it; expected lines such as '3 Where is John?⇥hallway⇥1'.")
        by_file.append(mine)
    asked = spread(by_file, questions, rng)
    enough(path, "stories", questions, len(asked))
    return Task("babi", {q.id: contexts[q.id] for q in asked}, tuple(asked))


def _files(path: Path) -> list[tuple[str, str]]:
    """Tasks by name with their text, in the order of their numbers."""
    if path.is_dir():
        found = {file.name: file.read_text(encoding="utf-8") for file in path.rglob("*.txt")}
    elif _is_archive(path):
        found: dict[str, str] = {}
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.name.endswith(".txt") else None
                    if content is not None:
                        found[Path(member.name).name] = content.read().decode("utf-8")
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            raise ValueError(f"{path}: cannot be read as an archive ({error}).") from error
    else:
        found = {path.name: read_text(path)}
    tests = {name: text for name, text in found.items() if name.endswith("_test.txt")} or found
    if not tests:
        raise ValueError(f"{path}: no .txt files in it; expected bAbI's qa1_…_test.txt and so on.")

    def number(name: str) -> tuple[int, str]:
        digits = re.match(r"qa(\d+)", name)
        return (int(digits[1]) if digits else 0, name)

    return [(name.removesuffix(".txt").split("_")[0], tests[name]) for name in sorted(tests, key=number)]


def _is_archive(path: Path) -> bool:
    """Whether a file is an archive by its name."""
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def _stories(text: str, where: str) -> Iterator[Story]:
    statements: list[str] = []
    asked: list[tuple[int, str, tuple[str, ...]]] = []
    for line in text.splitlines():
        number, _, rest = line.strip().partition(" ")
        if not rest:
            continue
        if not number.isdigit():
            raise ValueError(f"{where}: {line!r:.60} does not begin with a number, as lines of bAbI do.")
        if number == "1" and asked:
            yield statements, asked
        if number == "1":
            statements, asked = [], []
        if found := ASKED.fullmatch(rest):
            asked.append((len(statements), found[1], _accepted(found[2].strip())))
        else:
            statements.append(rest)
    if asked:
        yield statements, asked


def _accepted(answer: str) -> tuple[str, ...]:
    """Accepted answers: lists in any order, ways in full words and in their order."""
    parts = answer.split(",")
    if len(parts) == 1:
        return (answer,)
    if all(part in DIRECTIONS for part in parts):
        ways = [DIRECTIONS[part] for part in parts]
        return tuple(joined.join(ways) for joined in (", ", " and ", " then ", ", then "))
    return tuple(joined.join(order) for order in permutations(parts) for joined in (", ", " and "))
