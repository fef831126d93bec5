"""What belongs to one process: locks that a forked child never waits for in vain."""

import asyncio
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from mplus.forks import ProcessLock
from mplus.testing import tiny_model
from mplus_integrations import models
from mplus_integrations.langchain import MPlusChat
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory
from mplus_integrations.server.activity import Activity
from mplus_integrations.server.keys import KeyRing
from tests.conftest import TINY
from tests.reliability.forks import held, in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
PACKAGES = [Path(__file__).parent.parent / name for name in ("mplus", "mplus_integrations")]


def taken(lock: ProcessLock) -> str:
    with lock, lock:
        return "taken"


def test_a_lock_that_another_thread_holds_is_free_in_a_child() -> None:
    lock = ProcessLock()
    end = held(lock)
    assert in_child(lambda: taken(lock)) == "taken"
    end()


def test_a_lock_that_the_forking_thread_holds_stays_held_in_the_child_until_it_leaves() -> None:
    lock = ProcessLock()
    lock.__enter__()
    lock.__enter__()

    def by_another_thread() -> bool:
        done = threading.Event()
        threading.Thread(target=lambda: (taken(lock), done.set()), daemon=True).start()
        return done.wait(0.2)

    def left() -> list[bool]:
        before = by_another_thread()
        lock.__exit__()
        lock.__exit__()
        return [before, by_another_thread()]

    assert in_child(left) == [False, True]
    lock.__exit__()
    lock.__exit__()
    assert taken(lock) == "taken"


def test_what_frameworks_hold_is_no_hindrance_to_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(memory=TINY)
    chat, llm = MPlusChat(model=model, max_tokens=1), MPlusLLM(model=model, max_tokens=1)
    memory = MPlusMemory.from_defaults(llm=llm)
    chat.memorize("My code is 4711.", source="code")
    asyncio.run(chat.ainvoke("Hello?"))  # threads of the pool are the parent's
    monkeypatch.setattr(models.MPlus, "from_pretrained", lambda _: model)
    ring, activity = KeyRing(tmp_path / "keys.json"), Activity()
    held_here = [chat.own._guard, chat.latents()._guard, memory._guard, memory.latents._guard, models._LOADING]
    ends = [held(lock) for lock in (*held_here, ring._guard, activity._guard)]

    def work() -> list[Any]:
        said = chat.invoke("What is my code?").response_metadata["recalled"]
        memory.put_messages([])
        ring.add("anna")
        activity.drop("anna")
        return [
            [one["source"] for one in said],
            len(asyncio.run(chat.ainvoke("And?")).id or "") > 0,
            models.load("some model").name == model.name,
            [key.memory for key in ring.list()],
            memory.get_all(),
        ]

    assert in_child(work) == [["code"], True, True, ["anna"], []]
    for end in ends:
        end()


def test_every_lock_of_the_packages_is_one_that_forks_renew() -> None:
    files = [file for package in PACKAGES for file in package.rglob("*.py")]
    plain = [file.name for file in files if re.search(r"threading\.R?Lock\(\)", file.read_text())]
    # The helper itself, and the locks of names in a store, all of which a child drops.
    assert sorted(plain) == ["forks.py", "store_locks.py"]
    hidden = [file.name for file in files if "@cached_property" in file.read_text()]
    assert hidden == [], "a cached_property has a lock in Python 3.11"
