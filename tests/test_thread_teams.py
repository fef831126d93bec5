"""Threads that have computed keep no helpers: counted in a process of its own, where torch has two threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, threading, time
import torch
import mplus
from mplus.testing import tiny_model
from mplus.thread_teams import give_back_team

def helpers():
    return len(os.listdir("/proc/self/task")) - threading.active_count()

before = helpers()
rows = torch.ones(2048, 256)
rows @ rows.T
print("team", helpers() - before)
give_back_team()
print("given back", helpers() - before)
rows @ rows.T
print("again", helpers() - before)
give_back_team()

model = tiny_model()
memory = model.new_memory()
scheduler = model.serve()
text = "The key is under the mat. " * 200
acts = {
    "write": lambda: model.write(memory, text, source="notes"),
    "write_batch": lambda: model.write_batch([memory], [text]),
    "search": lambda: model.search(memory, "Where is the key?"),
    "generate": lambda: model.generate(memory, "Where is the key?", max_new_tokens=3),
    "generate_batch": lambda: model.generate_batch([memory] * 3, ["Where?"] * 3, max_new_tokens=3),
    "served": lambda: scheduler.generate(memory, "Where is the key?", max_new_tokens=3),
    "closed": lambda: next(model.stream(memory, "Where is the key?", max_new_tokens=30)),
}
for name, act in acts.items():
    act()
    end = time.monotonic() + 5  # the scheduler's own thread ends a moment after its last answer
    while name == "served" and helpers() > before and time.monotonic() < end:
        time.sleep(0.05)
    print(name, helpers() - before)

rows @ rows.T  # with a team, which a child does not have
child = os.fork()
if not child:
    acts["write"](), acts["generate"]()
    os._exit(0)
end = time.monotonic() + 60
while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
    time.sleep(0.05)
print("child", ended[1] if ended[0] else -1)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to count threads")


def test_calls_leave_no_helpers_behind() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in done.stdout.splitlines())}
    if not found["team"]:
        pytest.skip("torch does not divide work by OpenMP here")
    assert found == dict.fromkeys(found, 0) | {"team": 1, "again": 1}
