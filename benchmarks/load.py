"""Many users of one server for minutes: whose words they get, what is kept, how long it takes, how much it needs.

    python benchmarks/load.py [--users 64] [--seconds 600] [--model small]

Starts ``mplus serve`` on this machine as a process of its own. Every user has a key, a memory and a connection. In each
round all of them at once write a pass word, ask for it, forget an older one and read back what is held; then they ask
for ``--phase`` seconds, one streamed answer after the other, which is measured. In turn with that the bare scheduler
answers the same questions from the same memories in another process, without HTTP, keys or store, so that both sides
see the same machine; while one works the other one sleeps. Every answer must name its user's sources alone, and hold
nobody else's pass word. At the end the server is stopped, and what lies on disk is compared with what was acknowledged.

``--model small`` is a random model of some million parameters; a model with trained memory also says the pass words.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import report

import mplus

QUESTIONS = ("What is my pass word of round {}?", "What did I note in round {}? Answer at length.")
WORDS = (
    *("amber", "basil", "cedar", "coral", "daisy", "ember", "fennel", "garnet", "hazel", "indigo", "jasper"),
    *("kelp", "lemon", "maple", "nectar", "olive", "pearl", "quartz", "raven", "saffron", "topaz", "umber"),
    *("velvet", "willow", "yarrow", "zinc", "anchor", "beacon", "candle", "desert", "engine", "feather"),
)
KEPT = 4
"""Notes of each user; the oldest is forgotten when there are more."""
PORT = int(os.environ.get("MPLUS_LOAD_PORT", "8765"))


def loaded(name: str) -> mplus.MPlus:
    """A model by name; "tiny" and "small" are random ones."""
    if name not in ("tiny", "small"):
        return mplus.MPlus.from_pretrained(name, device="cpu")
    from mplus.testing import tiny_model

    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return tiny_model() if name == "tiny" else tiny_model(**sizes, **heads)


# --- the two sides ------------------------------------------------------------------------------------


def serve(options: Any) -> None:
    """The side of the server."""
    from mplus_integrations.server.running import run
    from mplus_integrations.server.settings import ServeSettings

    settings = ServeSettings(
        model=options.model,
        memories=options.folder / "memories",
        keys=options.folder / "keys.json",
        port=PORT,
        max_running=options.max_running,
    )
    run(settings, model=loaded(options.model))


class Answered(NamedTuple):
    """One answer: when it was asked for, when its first text and its end came, and its tokens."""

    asked: float
    first: float
    ended: float
    tokens: int


def bare(options: Any) -> None:
    """The side of the scheduler alone: answers for so many seconds for each line of standard input that says so."""
    model, names = loaded(options.model), [user.name for user in users(options.users)]
    store = mplus.MemoryStore(options.folder / "memories")
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, turn = map(float, line.split())
        memories, cpu = [store.load(name, model) for name in names], time.process_time()
        answered = alone(model, memories, seconds, int(turn), options)
        print(json.dumps({"answered": answered, "cpu": time.process_time() - cpu}), flush=True)


def alone(model: mplus.MPlus, memories: list[mplus.Memory], seconds: float, turn: int, options: Any) -> list[Answered]:
    """What a scheduler answers in some seconds to as many users as there are memories."""
    answered = list[Answered]()
    scheduler, ends = model.serve(max_running=options.max_running), time.monotonic() + seconds

    def user(memory: mplus.Memory, number: int) -> None:
        questions = Questions(number, turn)
        while time.monotonic() < ends:
            started, first = time.monotonic(), None
            prompt = [{"role": "user", "content": next(questions)}]
            stream = scheduler.stream(memory, prompt, max_new_tokens=options.answer_tokens)
            for _ in stream:
                first = first or time.monotonic()
            now = time.monotonic()
            answered.append(Answered(started, first or now, now, stream.generation.completion_tokens))

    threads = [threading.Thread(target=user, args=(one, number)) for number, one in enumerate(memories)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scheduler.close()
    return answered


class Questions:
    """The questions of a user in a phase, without end; the same on both sides."""

    def __init__(self, user: int, turn: int) -> None:
        self._random, self._turn = random.Random(f"{user} {turn}"), turn

    def __next__(self) -> str:
        return self._random.choice(QUESTIONS).format(self._random.randint(max(self._turn - KEPT + 1, 0), self._turn))


def measured(phases: list[list[Answered]], cpu: list[float], seconds: float) -> dict[str, Any]:
    """Figures of some phases of one side. Tokens count where they fall between a phase's first text and its end."""
    rates: list[float] = []
    for phase in phases:
        begun = min(one.first for one in phase)
        ended = min(one.asked for one in phase) + seconds
        within = sum(
            one.tokens * max(min(one.ended, ended) - max(one.first, begun), 0) / max(one.ended - one.first, 1e-6)
            for one in phase
        )
        rates.append(within / (ended - begun))
    waits = sorted(one.first - one.asked for phase in phases for one in phase)
    tokens = sum(one.tokens for phase in phases for one in phase)
    return {
        "answers": len(waits),
        "tokens": tokens,
        "tokens_per_second": statistics.fmean(rates),
        "tokens_per_cpu_second": tokens / sum(cpu),
        "first_token_p50": statistics.median(waits),
        "first_token_p99": waits[min(int(len(waits) * 0.99), len(waits) - 1)],
        "rates": [round(rate, 1) for rate in rates],
    }


# --- users --------------------------------------------------------------------------------------------


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
        """His pass word of a round: two words, which nobody else has in any round."""
        return f"{WORDS[self.number % 32]} {WORDS[(turn + 7 * (self.number // 32)) % 32]}{self.number}"

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
        status, said, first = await line.ask("POST", "/v1/chat/completions", asked(question, tokens, passages))
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
        text = json.dumps(events)
        if any(f"user-{n:03}" in text for n in range(self.number)) or any(
            mark in said_in(events) for mark in FOREIGN[self.number]
        ):
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
    everyone = [User(number) for number in range(count)]
    words = {one.number: {one.word(turn) for turn in range(32)} for one in everyone}
    FOREIGN.update({n: [w for m, those in words.items() if m != n for w in those] for n in words})
    return everyone


def asked(question: str, tokens: int, passages: bool) -> dict[str, Any]:
    more: dict[str, Any] = {"passages": True} if passages else {}
    messages, usage = [{"role": "user", "content": question}], {"include_usage": True}
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": True, "stream_options": usage, **more}


def said_in(events: list[Any]) -> str:
    """The text of an answer."""
    return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])


# --- the whole ----------------------------------------------------------------------------------------

MODEL = "small"


async def everyone(options: Any, server: int, other: subprocess.Popen[str]) -> dict[str, Any]:
    """All rounds; the figures of both sides."""
    people: list[User] = options.people
    lines = [Connection(user.key) for user in people]
    phases: list[list[Answered]] = []
    theirs: list[list[Answered]] = []
    cpu: list[float] = []
    their_cpu: list[float] = []
    resident: list[float] = []
    writing = serving = 0.0
    turn = 0
    while serving < options.seconds:
        begun = time.monotonic()
        await asyncio.gather(*(one.write_and_look(line, turn) for one, line in zip(people, lines, strict=True)))
        writing += time.monotonic() - begun
        sides = [True, False] if turn % 2 else [False, True]
        for is_server in sides:
            if is_server:
                spent, ends = cpu_of(server), time.monotonic() + options.phase
                talks = (u.talk(line, turn, ends, options.answer_tokens) for u, line in zip(people, lines, strict=True))
                phases.append([one for answered in await asyncio.gather(*talks) for one in answered])
                cpu.append(cpu_of(server) - spent)
            else:
                found = json.loads(await asyncio.to_thread(told, other, f"{options.phase} {turn}"))
                theirs.append([Answered(*one) for one in found["answered"]])
                their_cpu.append(found["cpu"])
        serving = writing + len(phases) * options.phase
        resident.append(resident_mib(server))
        ours, bare_ones = (
            measured(phases[-1:], cpu[-1:], options.phase),
            measured(theirs[-1:], their_cpu[-1:], options.phase),
        )
        print(
            f"round {turn}: {ours['tokens_per_second']:.1f} and bare {bare_ones['tokens_per_second']:.1f} tokens/s, "
            f"{resident[-1]:.0f} MiB, load {os.getloadavg()[0]:.0f}, {sum(len(u.wrong) for u in people)} wrong",
            file=sys.stderr,
            flush=True,
        )
        turn += 1
    served, alone = measured(phases, cpu, options.phase), measured(theirs, their_cpu, options.phase)
    pairs = [a / b for a, b in zip(served["rates"], alone["rates"], strict=True)]
    return {
        "users": len(people),
        "seconds_under_load": round(serving),
        "rounds": turn,
        "server": served,
        "bare_scheduler": alone,
        "ratio": served["tokens_per_second"] / alone["tokens_per_second"],
        "ratio_median_of_rounds": statistics.median(pairs),
        "ratio_per_cpu_second": served["tokens_per_cpu_second"] / alone["tokens_per_cpu_second"],
        "resident_mib": [round(one) for one in resident],
    }


def told(process: subprocess.Popen[str], line: str) -> str:
    """What the other side says to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """MiB of a process in host memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def on_disk(options: Any) -> list[str]:
    """What is wrong with the memories, as the next process finds them."""
    model, store = loaded(options.model), mplus.MemoryStore(options.folder / "memories")
    for user in options.people:
        user.compare({one.name: "".join(one.texts) for one in store.load(user.name, model).sources()})
    return [one for user in options.people for one in user.wrong]


def main() -> None:
    """Both sides, in turn."""
    parser = report.parser(__doc__)
    parser.set_defaults(model="small")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600, help="under load, the bare scheduler's time not counted")
    parser.add_argument("--phase", type=float, default=30, help="seconds of each side in turn")
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--max-running", type=int, default=16)
    parser.add_argument("--role", choices=["serve", "bare"], help="one side alone; the script starts both itself")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.role is not None:
        (serve if options.role == "serve" else bare)(options)
        return
    with tempfile.TemporaryDirectory(prefix="mplus-load-") as folder:
        options.folder = Path(folder)
        found = both(options)
    print(json.dumps(found, indent=1))
    report.write("load", found, options.output)


def both(options: Any) -> dict[str, Any]:
    """Start both sides, measure, and look at what is left."""
    global MODEL
    from mplus_integrations.server.keys import KeyRing

    MODEL, ring = options.model, KeyRing(options.folder / "keys.json")
    options.people = users(options.users)
    for user in options.people:
        user.key = ring.add(user.name)[1]
    command = [sys.executable, __file__, "--model", options.model, "--folder", str(options.folder)]
    command += [
        f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("users", "max_running", "answer_tokens")
    ]
    with (options.folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--role", "serve"], stdout=log, stderr=log)
    other = subprocess.Popen([*command, "--role", "bare"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        asyncio.run(ready())
        found = asyncio.run(everyone(options, server.pid, other))
        server.send_signal(signal.SIGTERM)
        found["exit_of_server"] = server.wait(timeout=120)
    finally:
        for process in (server, other):
            process.kill()
            process.wait()
    return found | {
        "wrong": on_disk(options),
        "statuses": dict(sum((user.statuses for user in options.people), Counter[str]())),
        "pass_words_said": [sum(u.spoken for u in options.people), sum(u.asked_for_word for u in options.people)],
    }


async def ready() -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            if (await Connection("").ask("GET", "/readyz"))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.5)
    raise TimeoutError("the server was not ready in five minutes")


if __name__ == "__main__":
    main()
