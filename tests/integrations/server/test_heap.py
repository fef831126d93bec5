"""The server's memory does not grow by what its threads have freed, nor by objects that requests leave behind."""

import gc
import os
import platform
import subprocess
import sys
from collections import Counter

import pytest

from mplus_integrations.server.activity import KEPT, Act
from tests.integrations.server.conftest import Served

ARENAS = """
import ctypes, sys, threading
from mplus_integrations.server.heap import share_heap
shared = share_heap()
here = threading.Barrier(9)
def work():
    held = [bytes(100_000) for _ in range(8)]
    here.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for one in threads: one.start()
here.wait()
for one in threads: one.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(shared, open(sys.argv[1]).read().count("<heap "))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize(("given", "shared"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)])
def test_threads_share_one_heap_unless_the_environment_says_how_many(
    tmp_path: os.PathLike[str], given: dict[str, str], shared: bool
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    }
    command = [sys.executable, "-c", ARENAS, os.path.join(tmp_path, "arenas.xml")]
    said = subprocess.run(command, env=environment | given, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(shared)
    assert (int(said[1]) == 1) == shared, said


def test_the_server_shares_its_heap_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus_integrations.server import running
    from mplus_integrations.server.settings import ServeSettings

    done: list[str] = []
    monkeypatch.setattr(running, "share_heap", lambda: done.append("heap"))
    monkeypatch.setattr(running, "set_up_logs", lambda _: None)
    monkeypatch.setattr(running.Server, "run", lambda self: done.append("run"))
    with pytest.raises(OSError, match="cannot listen"):
        running.run(ServeSettings(model="tiny"))
    assert done == ["heap", "run"]


CHECKS = ("jaxtyping.", "beartype.", "types.GenericAlias", "weakref.", "builtins.tuple")
"""What the checks of types leave, which only tests run."""


def objects() -> Counter[str]:
    gc.collect()
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


def test_requests_leave_no_objects_behind_but_what_the_page_shows(served: Served) -> None:
    def use(rounds: range) -> None:
        with served.client() as http:
            for number in rounds:
                note = {"text": f"Note {number} of plums.", "source": f"note-{number}"}
                http.post("/v1/memories/me/write", json=note).raise_for_status()
                http.post("/v1/memories/me/forget", json={"source": f"note-{number - 2}"})
                http.get("/v1/memories/me/sources").raise_for_status()
                served.chat("What of plums?", memory="me", stream=number % 2 == 0).raise_for_status()

    use(range(10))
    before = objects()
    use(range(10, 30))
    after = objects()
    acts = f"{Act.__module__}.{Act.__qualname__}"
    assert after[acts] - before[acts] == 60 < KEPT
    # A row of the table of sources stays, empty, and its counts, when its source is forgotten, until there are many.
    expected = {acts, "mplus.memory.state.SourceRecord", "builtins.dict", "builtins.list"}
    grown = {name: n for name, n in (after - before).items() if n >= 20 and name not in expected}
    assert {name for name in grown if not name.startswith(CHECKS)} == set(), grown
