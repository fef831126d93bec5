"""Replicas that are killed while they write: what was acknowledged is there, nothing is crossed, memories stay warm.

    python benchmarks/cluster.py [--seconds 300] [--replicas 3] [--memories 20] [--kill-every 10] [--restart]

Starts ``mplus serve --ray`` with a tiny random model on this machine. Clients write, read back and chat; every few
seconds a replica is killed (SIGKILL), if another one has its model loaded: starting one may take longer than that. In
the end every memory is opened from disk and compared with what was acknowledged. Locality is the share of answers that
came from the replica which gave the memory's answer before, so that the memory was warm there. ``--restart`` replaces
all replicas one after the other at the end, under load. Counts, no seconds: any machine will do.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayError

import mplus
from mplus_integrations.cluster.application import NAME, application
from mplus_integrations.cluster.running import end, start
from mplus_integrations.server.settings import ServeSettings

SMALL = mplus.MemoryConfig(
    chunk_tokens=32,
    minimum_chunk_tokens=8,
    tokens_per_write=32,
    short_term_tokens=96,
    recalled_tokens=64,
    consolidate_every=3,
    long_term_dtype="float32",
)


@dataclass(frozen=True)
class TinyModel:
    """Loads the tiny model, and notes the process in a folder when it has it."""

    processes: str

    def __call__(self) -> mplus.MPlus:
        import torch

        from mplus.testing import tiny_model

        torch.set_num_threads(1)
        model = tiny_model(memory=SMALL)
        Path(self.processes, str(os.getpid())).touch()
        return model

    def living(self) -> list[int]:
        return [pid for pid in map(int, os.listdir(self.processes)) if _lives(pid)]


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass
class Notes:
    """What the clients of one memory saw."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    answered_by: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return sum(a == b for a, b in zip(self.answered_by, self.answered_by[1:], strict=False))


class Client:
    """Writes into a few memories, reads them back and chats, until it is told to stop."""

    def __init__(self, url: str, memories: dict[str, Notes], stop: threading.Event, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)
        self._memories, self._stop, self._random = memories, stop, random.Random(seed)

    def run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            name = self._random.choice(list(self._memories))
            notes = self._memories[name]
            if turn % 6 == 0:
                self._read(name, notes)
            elif turn % 7 == 0:
                body = {"model": "tiny", "memory": name, "messages": [{"role": "user", "content": "What is the code?"}]}
                self._asked(notes, "chat", "POST", "/v1/chat/completions", body)
            else:
                source, text = f"note-{turn}", f"A note of {name}: the code is {self._random.randrange(10**9)}."
                made = self._asked(
                    notes, "write", "POST", f"/v1/memories/{name}/write", {"text": text, "source": source}
                )
                if made is not None:
                    notes.acknowledged[source] = text

    def _read(self, name: str, notes: Notes) -> None:
        found = self._asked(notes, "read", "GET", f"/v1/memories/{name}/sources?texts=true", None)
        if found is not None:
            notes.wrong += compared(name, notes, {one["name"]: "".join(one["texts"]) for one in found["sources"]})

    def _asked(self, notes: Notes, kind: str, method: str, path: str, body: Any) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            notes.statuses[f"{kind} {type(error).__name__}"] += 1
            return None
        is_ours = "json" in answer.headers.get("content-type", "")
        code = answer.json().get("code", "") if answer.status_code >= 400 and is_ours else ""
        notes.statuses[f"{kind} {answer.status_code} {code}".strip()] += 1
        if answer.status_code != 200:
            time.sleep(0.2)
            return None
        notes.answered_by.append(answer.headers["x-mplus-replica"])
        return answer.json()


def compared(name: str, notes: Notes, texts: dict[str, str]) -> list[str]:
    """What is lost or crossed in a memory, in words."""
    wrong = [
        f"{name}: {source} lost or changed" for source, text in notes.acknowledged.items() if texts.get(source) != text
    ]
    return wrong + [
        f"{name}: crossed {text!r}"
        for source, text in texts.items()
        if source.startswith("note-") and f"A note of {name}:" not in text
    ]


def on_disk(folder: Path, memories: dict[str, Notes]) -> tuple[int, list[str]]:
    """How many memories open, and what is wrong with any of them."""
    from mplus.testing import tiny_model

    model, store = tiny_model(memory=SMALL), mplus.MemoryStore(folder)
    opened, wrong = 0, []
    for name, notes in memories.items():
        damage = store.verify(name)
        wrong += [] if damage is None else [f"{name}: {damage}"]
        found = {source.name: "".join(source.texts) for source in store.load(name, model).sources()}
        wrong += compared(name, notes, found)
        opened += 1
    return opened, wrong


def kill(tiny: TinyModel, seconds: float, every: float) -> int:
    """Kill a replica every few seconds, as long as another one is left to answer; returns how many."""
    killed, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(min(every, max(ends - time.monotonic(), 0.0)))
        living = tiny.living()
        if time.monotonic() < ends and len(living) > 1:
            os.kill(random.choice(living), signal.SIGKILL)
            killed += 1
    return killed


def replaced(settings: ServeSettings, tiny: TinyModel) -> int:
    """Replace all replicas one after the other, as a new version does; returns how many of the old ones still live."""
    old = set(tiny.living())
    changed = settings.model_copy(update={"max_waiting": settings.max_waiting + 1})
    serve.run(application(changed, load=tiny), name=NAME, route_prefix="/")
    return len(old & set(tiny.living()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=10)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--restart", action="store_true", help="replace all replicas at the end, under load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mplus-cluster-") as folder:
        text = json.dumps(measure(Path(folder), options), indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the clients and the disk say."""
    tiny = TinyModel(str(folder / "processes"))
    Path(tiny.processes).mkdir()
    settings = ServeSettings(
        model="tiny",
        memories=folder / "memories",
        max_tokens=4,
        ray=True,
        replicas=options.replicas,
        replica_cpus=0.1,
        port=0,
    )
    memories = {f"user-{number}": Notes() for number in range(options.memories)}
    stop = threading.Event()
    url = start(settings, load=tiny)
    try:
        shares = [list(memories)[number :: options.clients] for number in range(options.clients)]
        clients = [
            Client(url, {name: memories[name] for name in share}, stop, seed) for seed, share in enumerate(shares)
        ]
        with ThreadPoolExecutor(options.clients) as threads:
            running = [threads.submit(client.run) for client in clients]
            try:
                killed = kill(tiny, options.seconds, options.kill_every)
                before = statuses(memories)
                left = replaced(settings, tiny) if options.restart else None
            finally:
                stop.set()
            for one in running:
                one.result()
        during = statuses(memories) - before
    finally:
        with suppress(RayError):
            end()
    asked = [notes for notes in memories.values() if notes.acknowledged]
    opened, wrong = on_disk(folder / "memories", {name: n for name, n in memories.items() if n.acknowledged})
    pairs = sum(max(len(notes.answered_by) - 1, 0) for notes in asked)
    return {
        "killed": killed,
        "acknowledged_writes": sum(len(notes.acknowledged) for notes in asked),
        "lost_or_crossed": wrong + [one for notes in memories.values() for one in notes.wrong],
        "memories": len(asked),
        "memories_that_open": opened,
        "locality": sum(notes.repeats for notes in asked) / max(pairs, 1),
        "answers": sum(len(notes.answered_by) for notes in asked),
        "replicas_seen": len({replica for notes in asked for replica in notes.answered_by}),
        "statuses": dict(before),
        "old_replicas_after_restart": left,
        "statuses_during_restart": dict(during) if options.restart else None,
    }


def statuses(memories: dict[str, Notes]) -> Counter[str]:
    return sum((notes.statuses for notes in memories.values()), Counter())


if __name__ == "__main__":
    main()
