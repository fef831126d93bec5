"""Reads what other programs export: conversations and memories, as texts to remember with their original times."""

import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mplus.moments import as_text, seconds_of
from mplus.turns import turn_text

Origin = Literal["chatgpt", "claude", "openwebui", "mem0", "jsonl"]
ROLES = {"human": "user", "user": "user", "assistant": "assistant", "tool": "tool"}
MOST_RATIO = 200
"""So much larger than packed a file of an archive may be; text packs to a tenth."""


class Brought(NamedTuple):
    """A text to remember.

    Attributes:
        text: The text.
        source: Its name, the same at every import, so that it is written once.
        metadata: Its origin, its time and what else is known of it.
        at: Unix time at which it was said; None: nothing is known.
    """

    text: str
    source: str
    metadata: dict[str, Any]
    at: float | None = None


def read_export(file: Path, origin: Origin) -> list[Brought]:
    """What an exported file holds, oldest first; what has no time comes before that.

    Args:
        file: The file, or for ChatGPT and Claude the zip file that holds ``conversations.json``.
        origin: The program that exported it.

    Raises:
        ValueError: The file is not of that program.
    """
    try:
        found = list(READERS[origin](_lines(file) if origin == "jsonl" else _parsed(file)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not an export of {origin}: {type(error).__name__}: {error}.") from error
    once = {one.source: one for one in found if one.text.strip()}
    return sorted(once.values(), key=lambda one: -math.inf if one.at is None else one.at)


def _parsed(file: Path) -> Any:
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                known = archive.getinfo("conversations.json")
                if known.file_size > MOST_RATIO * known.compress_size + 2**24:
                    raise ValueError(f"{known.filename} would have {known.file_size:,} bytes, far more than text packs")
                return json.loads(archive.read(known))
        # RuntimeError: it needs a password; NotImplementedError: packed in a way that zipfile does not know.
        except (zipfile.BadZipFile, RuntimeError, EOFError, zlib.error) as error:
            raise ValueError(f"{error}") from error
    return json.loads(file.read_text(encoding="utf-8-sig"))


def _lines(file: Path) -> list[Any]:
    # splitlines would also end lines at U+2028 and the like, which stand in texts.
    return [json.loads(line) for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def _chatgpt(conversations: Sequence[Mapping[str, Any]]) -> Iterator[Brought]:
    for talk in conversations:
        about = {"from": "chatgpt", "conversation": talk.get("conversation_id") or talk["id"], "title": talk["title"]}
        for node in _path(talk["mapping"], talk["current_node"], "parent"):
            said = node.get("message")
            if said is None or said["content"].get("content_type") not in ("text", "multimodal_text"):
                continue
            text = "\n".join(filter(None, map(_words, said["content"]["parts"])))
            yield from _turn(said["author"]["role"], text, said["id"], said.get("create_time"), about)


def _words(part: Any) -> str:
    """What was typed or spoken in a part of a message; nothing of a picture."""
    if isinstance(part, str):
        return part
    return part["text"] if part.get("content_type") == "audio_transcription" else ""


def _claude(conversations: Sequence[Mapping[str, Any]]) -> Iterator[Brought]:
    for talk in conversations:
        about = {"from": "claude", "conversation": talk["uuid"], "title": talk["name"]}
        for said in talk["chat_messages"]:
            parts = [part["text"] for part in said.get("content") or () if part.get("type") == "text"]
            text = "\n".join(parts) or said.get("text", "")
            yield from _turn(said["sender"], text, said["uuid"], said["created_at"], about)


def _openwebui(conversations: Sequence[Mapping[str, Any]]) -> Iterator[Brought]:
    for talk in conversations:
        chat, about = talk["chat"], {"from": "openwebui", "conversation": talk["id"], "title": talk["title"]}
        history = chat["history"]
        for said in _path(history["messages"], history["currentId"], "parentId"):
            yield from _turn(said["role"], said["content"], said["id"], said.get("timestamp"), about)


def _mem0(exported: Any) -> Iterator[Brought]:
    memories = exported["results"] if isinstance(exported, Mapping) else exported
    for one in memories:
        at = _at(one.get("updated_at") or one.get("created_at"))
        about = {**(one.get("metadata") or {}), "from": "mem0", **_time(at)}
        yield Brought(one["memory"], f"mem0-{one['id']}", about, at)


def _jsonl(lines: Sequence[Mapping[str, Any]]) -> Iterator[Brought]:
    for line in lines:
        given = _at(line.get("time"))
        written = _at(line["at"] if line.get("at") is not None else line.get("first_written"))
        about = {**_time(written), **(line.get("metadata") or {}), **_time(given)}
        text = line["text"] if "text" in line else turn_text(line)
        made = f"jsonl-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        yield Brought(text, line.get("source") or made, about, written if given is None else given)


READERS: Mapping[str, Callable[[Any], Iterator[Brought]]] = {
    "chatgpt": _chatgpt,
    "claude": _claude,
    "openwebui": _openwebui,
    "mem0": _mem0,
    "jsonl": _jsonl,
}


def _turn(role: str, text: str, name: str, time: Any, about: Mapping[str, Any]) -> Iterator[Brought]:
    """A turn of a conversation; what was never said, such as a system message, is left out."""
    if role in ROLES and text.strip():
        said, at = turn_text({"role": ROLES[role], "content": text}), _at(time)
        yield Brought(said, f"{about['from']}-{name}", {**about, "role": ROLES[role], **_time(at)}, at)


def _path(nodes: Mapping[str, Mapping[str, Any]], last: str | None, parent: str) -> list[Mapping[str, Any]]:
    """The branch of a conversation that is shown: from its first node to the last."""
    found: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while last is not None and last not in seen:
        seen.add(last)
        found.append(nodes[last])
        last = nodes[last].get(parent)
    return found[::-1]


def _at(given: Any) -> float | None:
    """A time in Unix seconds, from these or ISO 8601; None where there is none."""
    return None if given is None else seconds_of(given, "time")


def _time(at: float | None) -> dict[str, str]:
    """A time as metadata, in UTC."""
    return {} if at is None else {"time": as_text(math.floor(at))}
