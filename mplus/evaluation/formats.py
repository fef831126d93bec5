"""Which task a file is for, by what is in it."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any, cast

from mplus.evaluation.data_files import read_json, read_records, read_text

TEXTS = "texts"
"""Not a task: texts that only stand between memory and question."""
EXPECTED = (
    "JSON lines of talk (told, ask), NQ (question, answers, ctxs), dialogues (turns, facts), rows (text, question, "
    "answers), common questions (question, answers), LongBench (context, input) or texts (text); SQuAD's JSON (data, "
    "paragraphs), "
    "LoCoMo's (conversation, qa), LongMemEval's (haystack_sessions, answer_session_ids), MemoryAgentBench's (context, "
    "questions) or BEAM's (chat, probing_questions), these two also as .parquet; bAbI's numbered lines, a folder or "
    "archive of them; or plain text as .txt or .md"
)
BY_FIELDS: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(fields.split()), task)
    for fields, task in (
        ("told ask", "talk"),
        ("question answers ctxs", "nq"),
        ("turns facts", "dialogue"),
        ("conversation qa", "locomo"),
        ("haystack_sessions answer_session_ids", "longmemeval"),
        ("context questions answers", "memoryagentbench"),
        ("chat probing_questions", "beam"),
        ("context input", "longdoc"),
    )
)
BABI_FILE = re.compile(r"qa\d+_.*\.txt")
BARS = re.compile(r"^\d+ .*\?\s*\|[^|]+\|[\d ]+$", re.MULTILINE)
"""A question of bAbI in a copy that has bars for tabs."""


def recognised(path: Path) -> str:
    """The task of a file, or ``texts``.

    Raises:
        ValueError: It is of no format that is known; the message says what was found, and what was expected.
    """
    if path.is_dir():
        if any(BABI_FILE.fullmatch(file.name) for file in path.iterdir()):
            return "babi"
        raise _unknown(path, "a folder without bAbI's qa1_….txt")
    if path.name.endswith((".tar", ".tar.gz", ".tgz")):
        return _archive(path)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        return _of_records(path)
    if kind in (".json", ".jsonl"):
        return _of_json(path)
    if kind not in (".txt", ".md"):
        raise _unknown(path, f"a name that ends in {kind or 'nothing'}")
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    return "babi" if re.match(r"1 \S", first) and ("\t" in text or BARS.search(text)) else TEXTS


def _archive(path: Path) -> str:
    with tarfile.open(path) as archive:
        names = archive.getnames()
    if any(BABI_FILE.fullmatch(Path(name).name) for name in names):
        return "babi"
    raise _unknown(path, f"an archive of {', '.join(names[:3])}")


def _of_json(path: Path) -> str:
    text = read_text(path).lstrip()
    if text.startswith("{") and _is_whole(text):
        whole = read_json(path)
        if "data" in whole and "paragraphs" in json.dumps(whole["data"][:1]):
            return "squad"
    return _of_records(path)


def _of_records(path: Path) -> str:
    records = list(read_records(path))
    if not records:
        raise _unknown(path, "no record")
    fields = records[0].keys()
    for wanted, task in BY_FIELDS:
        if wanted <= fields:
            return task
    return _rows(path, records)


def _rows(path: Path, records: list[dict[str, Any]]) -> str:
    fields = set[str]().union(*(record.keys() for record in records[:100]))
    if any(record.get("text") and record.get("question") and record.get("answers") for record in records):
        return "rows"
    if "question" in fields and not any(record.get("text") for record in records):
        return "common"
    if any(record.get("text") or record.get("context") or record.get("turns") for record in records):
        return TEXTS
    raise _unknown(path, f"records of {', '.join(sorted(fields)) or 'nothing'}")


def _is_whole(text: str) -> bool:
    """Whether a text is one JSON object, not one a line."""
    try:
        first = json.loads(text.split("\n", 1)[0])
    except json.JSONDecodeError:
        return True
    return "data" in cast("dict[str, Any]", first)


def _unknown(path: Path, found: str) -> ValueError:
    return ValueError(
        f"{path}: found {found}; expected {EXPECTED}. Name its format in suite.toml, or take it out of the folder."
    )
