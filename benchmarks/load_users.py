"""The users of ``load.py``: what each asks, remembers, and must never be told."""

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

QUESTIONS = ("What is my pass word of round {}?", "What did I note in round {}? Answer at length.")
WORDS = (
    *("amber", "basil", "cedar", "coral", "daisy", "ember", "fennel", "garnet", "hazel", "indigo", "jasper"),
    *("kelp", "lemon", "maple", "nectar", "olive", "pearl", "quartz", "raven", "saffron", "topaz", "umber"),
    *("velvet", "willow", "yarrow", "zinc", "anchor", "beacon", "candle", "desert", "engine", "feather"),
)
KEPT = 4
"""Notes of each user; the oldest is forgotten when there are more."""
PORT = int(os.environ.get("MPLUS_LOAD_PORT", "8765"))


class Answered(NamedTuple):
    """One answer: when it was asked for, when its first text and its end came, and its tokens."""

    asked: float
    first: float
    ended: float
    tokens: int


class Questions:
    """The questions of a user in a phase, without end; the same on both sides."""

    def __init__(self, user: int, turn: int) -> None:
        self._random, self._turn = random.Random(f"{user} {turn}"), turn

    def __next__(self) -> str:
        return self._random.choice(QUESTIONS).format(self._random.randint(max(self._turn - KEPT + 1, 0), self._turn))


class Connection:
    """A connection of HTTP that is kept; it reads a whole answer and notes when the first byte of its body came.

    A client of few instructions: on a small machine the load must not be what is measured.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._pipe: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes, float]:
        """Status, body, and the time of the first byte of the body."""
        if self._pipe is None or self._pipe[0].at_eof():  # the server ends connections that were idle for seconds
            self._pipe = await asyncio.open_connection("127.0.0.1", PORT)
        reader, writer = self._pipe
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._key}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        if "content-length: " in head:
            said = await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            return status, said, time.monotonic()
        parts, first = b"", 0.0
        while not parts.endswith(b"\r\n0\r\n\r\n"):
            part = await reader.read(2**16)
            if not part:
                raise ConnectionError("the server hung up in the middle of an answer")
            first, parts = first or time.monotonic(), parts + part
        return status, unchunked(parts), first


def unchunked(parts: bytes) -> bytes:
    """The content of chunks."""
    found, at = [], 0
    while size := int(parts[at : (start := parts.index(b"\r\n", at) + 2)], 16):
        found.append(parts[start : start + size])
        at = start + size + 2
    return b"".join(found)


@dataclass
class User:
    """One user, and what he has seen."""

    number: int
    key: str = ""
    model: str = ""
    notes: dict[str, str] = field(default_factory=dict)
    """Text of each acknowledged source that was not forgotten."""
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    spoken: int = 0
    asked_for_word: int = 0

    @property
    def name(self) -> str:
        return f"user-{self.number:03}"

    def word(self, turn: int) -> str:
        """His pass word of a round: two words, which nobody else has in any round, nor begins with."""
        return f"{WORDS[self.number % 32]} {WORDS[(turn + 7 * (self.number // 32)) % 32]}{self.number:02}"

    async def told(self, line: Connection, kind: str, method: str, path: str, body: Any = None) -> Any:
        """An answer, or None where it was refused."""
        status, said, _ = await line.ask(method, path, body)
        self.statuses[f"{kind} {status}"] += 1
        return json.loads(said) if status == 200 else None

    async def write_and_look(self, line: Connection, turn: int) -> None:
        """Write a pass word, ask for it, forget the oldest, and read back what is held."""
        source, at = f"{self.name}-{turn}", f"/v1/memories/{self.name}"
        text = f"Note of {self.name}: my pass word of round {turn} is {self.word(turn)}."
        if await self.told(line, "write", "POST", f"{at}/write", {"text": text, "source": source}):
            self.notes[source] = text
        events = await self.chat(line, QUESTIONS[0].format(turn), 16, passages=True)
        if events is not None:
            self.asked_for_word += 1
            self.spoken += self.word(turn) in said_in(events)
        if len(self.notes) > KEPT:
            oldest = next(iter(self.notes))
            if await self.told(line, "forget", "POST", f"{at}/forget", {"source": oldest}):
                del self.notes[oldest]
        held = await self.told(line, "read", "GET", f"{at}/sources?texts=true")
        if held is not None:
            self.compare({one["name"]: "".join(one["texts"]) for one in held["sources"]})

    def compare(self, held: dict[str, str]) -> None:
        """Note what is lost, and what is there that should not be."""
        self.wrong += [f"{self.name}: {name} lost" for name, text in self.notes.items() if held.get(name) != text]
        self.wrong += [f"{self.name}: holds {name}: {held[name]!r}" for name in held.keys() - self.notes.keys()]

    async def chat(self, line: Connection, question: str, tokens: int, *, passages: bool = False) -> Any:
        """The events of a streamed answer, checked; None where it was refused."""
        began = time.monotonic()
        status, said, first = await line.ask(
            "POST", "/v1/chat/completions", asked(self.model, question, tokens, passages)
        )
        ended = time.monotonic()
        self.statuses[f"chat {status}"] += 1
        if status != 200:
            return None
        events = [json.loads(one.removeprefix("data: ")) for one in said.decode().split("\n\n")[:-2]]
        if not said.endswith(b"data: [DONE]\n\n"):
            self.wrong.append(f"{self.name}: an answer ended with {said[-200:]!r}")
            return None
        self.check(events)
        events[-1]["times"] = Answered(began, first, ended, events[-1]["usage"]["completion_tokens"])
        return events

    def check(self, events: list[Any]) -> None:
        """Note whatever is not this user's."""
        for about in (event["mplus"] for event in events if "mplus" in event):
            names = [one["source"] for one in (*about["recalled"], *about.get("passages", ()))]
            foreign = [name for name in names if not name.startswith(self.name + "-")]
            if foreign or about["memory"] != self.name:
                self.wrong.append(f"{self.name}: reads {foreign} of {about['memory']}")
        text, answer = json.dumps(events), said_in(events)
        others = set(re.findall(r"user-\d{3}", text)) - {self.name}
        if others or any(mark in answer for mark in FOREIGN[self.number]):
            self.wrong.append(f"{self.name}: was told {text[:300]}")

    async def talk(self, line: Connection, turn: int, ends: float, tokens: int) -> list[Answered]:
        """Ask one question after the other until a time."""
        answered, questions = list[Answered](), Questions(self.number, turn)
        while time.monotonic() < ends:
            events = await self.chat(line, next(questions), tokens)
            if events is None:
                await asyncio.sleep(0.2)
            else:
                answered.append(events[-1]["times"])
        return answered


FOREIGN: dict[int, list[str]] = {}
"""The last words of the pass words of all others, by user."""


def users(count: int) -> list[User]:
    """So many users, and in ``FOREIGN`` what each must not be told."""
    everyone = [User(number) for number in range(count)]
    words = {one.number: {one.word(turn) for turn in range(32)} for one in everyone}
    FOREIGN.update({n: [w for m, those in words.items() if m != n for w in those] for n in words})
    return everyone


def asked(model: str, question: str, tokens: int, passages: bool) -> dict[str, Any]:
    """The body of a question."""
    more: dict[str, Any] = {"passages": True} if passages else {}
    messages, usage = [{"role": "user", "content": question}], {"include_usage": True}
    return {"model": model, "messages": messages, "max_tokens": tokens, "stream": True, "stream_options": usage, **more}


def said_in(events: list[Any]) -> str:
    """The text of an answer."""
    return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])
