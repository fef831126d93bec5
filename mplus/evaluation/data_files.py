"""Files that hold data: opened packed or not, and as plain passages that serve as distractors."""

import gzip
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

SPEAKERS = {"u": "User", "s": "Assistant"}
PASSAGE_WORDS = 120
"""Paragraphs of plain text are joined to passages of about this many words."""


def read_text(path: Path) -> str:
    """A text file, gzipped or not.

    Raises:
        ValueError: No such file, or not UTF-8 text.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file. Pass the path of a data file; none are shipped.") from error
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(
            f"{path}: cannot be read as text ({error}). Expected UTF-8, or UTF-8 packed as .gz."
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ValueError: Not readable, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON lines file, of a JSON file that holds a list of them, or rows of a parquet file.

    Raises:
        ValueError: Not readable; a line that is not a JSON object, by its number.
    """
    return (record for _, record in numbered_records(path))


def numbered_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """What ``read_records`` reads, each with the number of its line."""
    if path.suffix == ".parquet":
        yield from enumerate(_rows_of_table(path), 1)
        return
    text = read_text(path)
    if text.lstrip().startswith("["):
        records: list[Any] = read_json(path)
        numbered = list(enumerate(records, 1))
    else:
        numbered = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                numbered.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}). Expected one object a line.") from error
    for number, record in numbered:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {number}: {record!r:.60} is no JSON object.")
        yield number, record


def _rows_of_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file.

    Raises:
        ValueError: It cannot be read, or the package that reads it is not installed.
    """
    try:
        parquet = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: a parquet file is read by pyarrow (pip install pyarrow), or as JSON lines."
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file. Pass the path of a data file; none are shipped.") from error
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise ValueError(f"{path}: not a parquet file ({error}).") from error


def field_of(record: dict[str, Any], name: str, path: Path) -> Any:
    """A field that must be there.

    Raises:
        ValueError: It is not; the message says what the record has.
    """
    if name not in record:
        raise ValueError(f"{path}: a record has no {name!r}, only {', '.join(record) or 'nothing'}.")
    return record[name]


def answer_texts(given: Any) -> tuple[str, ...]:
    """Accepted answers as a list of texts, from whatever form a file has."""
    listed = given if isinstance(given, list) else [given]
    return tuple(dict.fromkeys(str(one) for one in listed))


def turns_as_text(turns: list[list[str]]) -> str:
    """A conversation of (speaker, said) pairs as text.

    Raises:
        ValueError: A speaker who is neither "u", the user, nor "s", the assistant.
    """
    for speaker, _ in turns:
        if speaker not in SPEAKERS:
            raise ValueError(f"A turn is spoken by {speaker!r}; expected 'u' (the user) or 's' (the assistant).")
    return "\n".join(f"{SPEAKERS[speaker]}: {said}" for speaker, said in turns)


def passages(path: Path) -> list[str]:
    """Texts of a file or folder, as passages that may stand between a memory and its question.

    Knows SQuAD JSON, JSON lines with ``turns`` (conversations), ``text``, ``context`` or ``ctxs``, plain text, and
    folders of ``.txt`` and ``.md`` files.

    Raises:
        ValueError: Not readable, or nothing in it.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md"))
        found = [passage for file in files for passage in _paragraphs(read_text(file))]
    else:
        suffixes = [s for s in path.suffixes if s != ".gz"]
        kind = suffixes[-1] if suffixes else ""
        found = list(_structured(path)) if kind in (".json", ".jsonl") else _paragraphs(read_text(path))
    found = [text for text in found if text.strip()]
    if not found:
        raise ValueError(f"{path}: no text found that could serve as distractors.")
    return found


def _structured(path: Path) -> Iterator[str]:
    text = read_text(path)
    if text.lstrip().startswith("{") and '"paragraphs"' in text[:100_000]:
        for article in read_json(path)["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]
        return
    for record in read_records(path):
        if "turns" in record:
            yield turns_as_text(record["turns"])
        elif "ctxs" in record:
            yield from (context["text"] for context in record["ctxs"])
        elif "text" in record or "context" in record:
            yield from _paragraphs(str(record.get("text") or record.get("context")))
        else:
            raise ValueError(
                f"{path}: a record has {', '.join(record)}; expected text under turns, ctxs, text or context."
            )


def _paragraphs(text: str) -> list[str]:
    found: list[str] = []
    waiting: list[str] = []
    words = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.strip():
            continue
        waiting.append(paragraph.strip())
        words += len(paragraph.split())
        if words >= PASSAGE_WORDS:
            found.append("\n\n".join(waiting))
            waiting, words = [], 0
    return found + (["\n\n".join(waiting)] if waiting else [])
