"""Fork a process that has loaded a model, as servers with preloading do, at the worst moments. Prints JSON.

python -m tests.reliability.forks FOLDER
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mplus import Memory, MemoryLockedError, MemoryStore, MPlus, SchedulerClosedError
from tests.reliability import states

SECONDS = 120


def in_child(work: Callable[[], Any]) -> Any:
    """What some work in a forked child returned; its error's name if it raised; "hung" if it never ended."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        signal.alarm(SECONDS)
        try:
            found = work()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(send, json.dumps(found).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as said:
        text = said.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "hung"


def held(lock: Any) -> Callable[[], None]:
    """Have another thread hold a lock; returns what ends that."""
    ended, taken = threading.Event(), threading.Event()

    def work() -> None:
        with lock:
            taken.set()
            ended.wait()

    threading.Thread(target=work, daemon=True).start()
    taken.wait()
    return ended.set


def with_held_locks(model: MPlus, memory: Memory, store: MemoryStore) -> Any:
    """Read, write and save in a child, while other threads of the parent hold every lock."""
    held_in_child = [
        memory.writing(),
        model._new_memories._lock,
        store._recent._guard,
        store._locks._guard,
        model._requests.present._joined._guard,
    ]
    ends = [held(lock) for lock in held_in_child]

    def work() -> list[str]:
        model.write(memory, "Written in the child, after the fork.", source="child")
        model.generate(memory, "Which text?", max_new_tokens=2)
        with store.open("bob", model) as opened:
            model.write(opened, "Bob is written in the child.", source="b")
        return [source.name for source in memory.sources()]

    found = in_child(work)
    for end in ends:
        end()
    return found


def with_open_memory(model: MPlus, store: MemoryStore) -> dict[str, Any]:
    """Fork while a memory is open: the child neither saves it nor frees it, and does not hold it."""
    found: dict[str, Any] = {}
    with store.open("alice", model) as memory:
        model.write(memory, "What the parent wrote.", source="parent")

        def leave() -> str:
            model.write(memory, "What the child wrote into it.", source="child")
            raise RuntimeError("left")

        def again() -> list[str]:
            with store.open("alice", model, timeout=0.2) as opened:
                return [source.name for source in opened.sources()]

        found["opened in the child"] = in_child(again)
        found["left in the child"] = in_child(leave)
        found["still held"] = in_child(again)
    found["saved"] = [source.name for source in MemoryStore(store.root).load("alice", model).sources()]

    child = None
    receive, send = os.pipe()
    with_block = store.open("carol", model)
    with_block.__enter__()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            with_block.__exit__(None, None, None)
            said = "saved"
        except MemoryLockedError as error:
            said = f"refused: {error}"
        os.write(send, said.encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as text:
        found["saved by the child"] = text.read()
    os.waitpid(child, 0)
    found["carol still held"] = in_child(lambda: store.open("carol", model, timeout=0.2).__enter__())
    with_block.__exit__(None, None, None)
    return found


def letters_only(_: Any, logits: torch.Tensor) -> torch.Tensor:
    """Never the end of an answer: the byte tokenizer's control tokens come after all bytes."""
    return torch.cat([logits[:256], torch.full_like(logits[256:], -torch.inf)])


def with_scheduler(model: MPlus, memory: Memory) -> dict[str, Any]:
    """A scheduler that answers in the parent is an idle one in the child; what the parent asked ends with an error."""
    with model.serve() as scheduler:
        stream = scheduler.stream(memory, "Which text?", max_new_tokens=3000, processors=[letters_only])
        next(iter(stream))

        def asked() -> int:
            return scheduler.generate(
                memory, "Which text?", max_new_tokens=2, processors=[letters_only]
            ).completion_tokens

        def read_on() -> str:
            try:
                for _ in stream:
                    pass
            except SchedulerClosedError as error:
                return f"refused: {error}"
            return "ended"

        found = {"asked": in_child(asked), "read on": in_child(read_on)}
        stream.close()
    return found


def main() -> None:
    root = Path(sys.argv[1])
    model = states.model()
    memory = model.new_memory()
    model.write(memory, states.text(1), source="a")
    store = MemoryStore(root / "store")
    started = time.perf_counter()
    found = {
        "locks": with_held_locks(model, memory, store),
        "open": with_open_memory(model, store),
        "scheduler": with_scheduler(model, memory),
    }
    print(json.dumps(found | {"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
