"""What the benchmarks of a cluster share: replicas of a tiny model, clients that note what they see, and the check.

Clients do what the guide says: they ask again after ``Retry-After``, and after ``replica_lost`` they look whether what
they wrote is there, and write it again if it is not. What still failed then they gave up.
"""

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from object_folder import register
from ray import serve

import mplus
from mplus_integrations.cluster.application import NAME
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
PATIENCE_SECONDS = 120.0
"""So long a client asks again before it gives up."""
LOST = frozenset({"replica_lost", "cut_off"})
"""What was asked may or may not have been done."""


@dataclass(frozen=True)
class TinyModel:
    """Loads the tiny model, and notes the process in a folder when it has it.

    Attributes:
        processes: The folder.
        apart: Whether each replica has copies of its own of what is behind a url, as on a machine of its own.
    """

    processes: str
    apart: bool = False

    def __call__(self) -> mplus.MPlus:
        import torch

        from mplus.testing import tiny_model

        register()
        if self.apart:
            os.environ["MPLUS_HOME"] = f"{self.processes}-machine-{os.getpid()}"
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
    given_up: list[str] = field(default_factory=list)

    @property
    def repeats(self) -> int:
        return sum(a == b for a, b in zip(self.answered_by, self.answered_by[1:], strict=False))


class Client:
    """Writes into a few memories, reads them back and chats, until it is told to stop."""

    def __init__(self, url: str, memories: dict[str, Notes], stop: threading.Event, seed: int) -> None:
        self._http = httpx.Client(base_url=url, timeout=300)
        self._memories, self._stop, self._random = memories, stop, random.Random(seed)
        self._seed = seed

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
                self._write(name, notes, f"note-{self._seed}-{turn}")

    def _write(self, name: str, notes: Notes, source: str) -> None:
        text = f"A note of {name}: the code is {self._random.randrange(10**9)}."
        is_there = lambda: self._is_there(name, notes, source)
        body = {"text": text, "source": source}
        if self._asked(notes, "write", "POST", f"/v1/memories/{name}/write", body, is_there) is not None:
            notes.acknowledged[source] = text

    def _is_there(self, name: str, notes: Notes, source: str) -> bool:
        found = self._asked(notes, "look", "GET", f"/v1/memories/{name}/sources?source={source}", None)
        return found is not None and any(one["name"] == source for one in found["sources"])

    def _read(self, name: str, notes: Notes) -> None:
        expected = dict(notes.acknowledged)  # of another client too, which may write meanwhile
        found = self._asked(notes, "read", "GET", f"/v1/memories/{name}/sources?texts=true", None)
        if found is not None:
            notes.wrong += compared(name, expected, {one["name"]: "".join(one["texts"]) for one in found["sources"]})

    def _asked(
        self,
        notes: Notes,
        kind: str,
        method: str,
        path: str,
        body: Any,
        is_done: Callable[[], bool] = lambda: False,
    ) -> Any:
        """The answer; None if there is none: the memory is not there, or the client gave up."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.HTTPError as error:
                told, code, wait = type(error).__name__, "cut_off", 1.0
            else:
                is_json = "json" in answer.headers.get("content-type", "")
                code = answer.json().get("code", "") if answer.status_code >= 400 and is_json else ""
                told, wait = f"{answer.status_code} {code}".strip(), float(answer.headers.get("retry-after", 0))
                if answer.status_code == 200:
                    notes.statuses[f"{kind} 200"] += 1
                    notes.answered_by.append(answer.headers["x-mplus-replica"])
                    return answer.json()
            notes.statuses[f"{kind} {told}"] += 1
            if code == "source_not_found" or (code == "memory_not_found" and not notes.acknowledged):
                return None  # what was looked for is not there
            if not wait or time.monotonic() > ends:
                notes.given_up.append(f"{kind} {told}")
                return None
            time.sleep(wait)
            if code in LOST and is_done():
                return {}


def compared(name: str, acknowledged: dict[str, str], texts: dict[str, str]) -> list[str]:
    """What is lost or crossed in a memory, in words."""
    wrong = [f"{name}: {source} lost or changed" for source, text in acknowledged.items() if texts.get(source) != text]
    return wrong + [
        f"{name}: crossed {text!r}"
        for source, text in texts.items()
        if source.startswith("note-") and f"A note of {name}:" not in text
    ]


@contextmanager
def asking(url: str, memories: dict[str, Notes], clients: int, seed: int = 0) -> Any:
    """Clients that ask at the same time, each of its share of the memories, until the block ends."""
    stop = threading.Event()
    shares = [list(memories)[number::clients] for number in range(clients)]
    made = [
        Client(url, {name: memories[name] for name in share}, stop, seed + number)
        for number, share in enumerate(shares)
    ]
    with ThreadPoolExecutor(clients) as threads:
        running = [threads.submit(client.run) for client in made]
        try:
            yield
        finally:
            stop.set()
        for one in running:
            one.result()


def running_replicas() -> int:
    """How many replicas Ray Serve counts as running."""
    states = serve.status().applications[NAME].deployments["replica"].replica_states
    return int(states.get("RUNNING", 0))


def found(settings: ServeSettings, folder: Path, memories: dict[str, Notes]) -> dict[str, Any]:
    """What the clients and the storage say in the end."""
    register()
    store = (
        mplus.MemoryStore(settings.memories)
        if settings.memories is not None
        else mplus.UrlStore(str(settings.memories_url), folder / "copies")
    )
    written = {name: notes for name, notes in memories.items() if notes.acknowledged}
    opened, wrong = _stored(store, written)
    pairs = sum(max(len(notes.answered_by) - 1, 0) for notes in written.values())
    return {
        "acknowledged_writes": sum(len(notes.acknowledged) for notes in written.values()),
        "lost_or_crossed": wrong + [one for notes in memories.values() for one in notes.wrong],
        "given_up": [one for notes in memories.values() for one in notes.given_up],
        "memories": len(written),
        "memories_that_open": opened,
        "locality": sum(notes.repeats for notes in written.values()) / max(pairs, 1),
        "answers": sum(len(notes.answered_by) for notes in written.values()),
        "replicas_seen": len({replica for notes in written.values() for replica in notes.answered_by}),
    }


def _stored(store: mplus.MemoryStore, memories: dict[str, Notes]) -> tuple[int, list[str]]:
    """How many memories open, and what is wrong with any of them."""
    from mplus.testing import tiny_model

    model = tiny_model(memory=SMALL)
    opened, wrong = 0, []
    for name, notes in memories.items():
        damage = store.verify(name)
        wrong += [] if damage is None else [f"{name}: {damage}"]
        texts = {source.name: "".join(source.texts) for source in store.load(name, model).sources()}
        wrong += compared(name, notes.acknowledged, texts)
        opened += 1
    return opened, wrong


def statuses(memories: dict[str, Notes]) -> Counter[str]:
    """How often each answer came."""
    return sum((notes.statuses for notes in memories.values()), Counter())


def settings_of(folder: Path, url: str | None, **options: Any) -> tuple[ServeSettings, TinyModel]:
    """Settings of replicas of the tiny model, whose memories are in the folder or behind a url, and its loader.

    Args:
        folder: Where everything is kept.
        url: The url; "objects": an object store in the folder. None: a folder that all replicas share.
        options: Further settings by name.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    register()
    (folder / "processes").mkdir()
    place = {"memories": folder / "memories"} if url is None else {}
    behind = f"objects://{folder}/bucket/memories" if url == "objects" else url
    settings = ServeSettings(
        model="tiny", max_tokens=4, ray=True, replica_cpus=0.1, port=0, memories_url=behind, **place, **options
    )
    return settings, TinyModel(str(folder / "processes"), apart=url is not None)


def written(figures: dict[str, Any], to: Path | None) -> None:
    """Print the figures, and keep them in a file if one is named."""
    text = json.dumps(figures, indent=1)
    print(text)
    if to is not None:
        to.write_text(text + "\n")
