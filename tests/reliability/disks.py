"""Run out of disk, and lose the right to write, on a small file system of one's own.

    unshare -Urm python -m tests.reliability.disks FOLDER

Mounts a tmpfs on FOLDER, in a mount namespace that ends with the process. Prints JSON.
"""

import errno
import json
import subprocess
import sys
from pathlib import Path

from mplus import Memory, MemorySaveError, MemoryStore
from mplus.storage.place import UNFINISHED
from tests.reliability import states


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def refused(work) -> tuple[int | None, str]:
    """The error of something that cannot be saved."""
    try:
        work()
    except MemorySaveError as error:
        return error.errno, str(error)
    return None, "nothing was refused"


def main() -> None:
    root = Path(sys.argv[1])
    mount("-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(root))
    model = states.model()
    store = MemoryStore(root / "store", max_resident_bytes=0)
    with store.open("alice", model) as memory:
        model.write(memory, states.text(1), source="a")
    old = states.hash_of(store.load("alice", model))
    folder = store.path("alice")
    found = {}

    # One save after another until the disk is full, at every size of what is left free.
    for number, left in enumerate((0, 4096, 20_000, 60_000, 120_000)):
        filler = root / "filler"
        size = 2 * 2**20
        while True:
            try:
                filler.write_bytes(b"\0" * size)
                break
            except OSError:
                size -= 2048
        with filler.open("r+b") as file:
            file.truncate(max(size - left, 0))
        bigger = store.load("alice", model)
        model.write(bigger, states.text(100 + number, 60), source="b")

        def write_much(bigger=bigger) -> None:
            with store.open("alice", model) as memory:
                memory.adopt(bigger)

        code, message = refused(write_much)
        found[f"full, {left} bytes left"] = {
            "errno": errno.errorcode.get(code or 0),
            "message": message,
            "intact": states.hash_of(Memory.load(folder, model)) == old,
            "garbage": [p.name for p in folder.iterdir() if p.name.startswith(UNFINISHED)],
        }
        filler.unlink()
    with store.open("alice", model) as memory:
        model.write(memory, "There is room again for this.", source="c")
    found["room again"] = [s.name for s in store.load("alice", model).sources()]
    old = states.hash_of(store.load("alice", model))

    mount("-o", "remount,ro", str(root))
    memory = store.load("alice", model)
    for name, work in (
        ("save", lambda: memory.save(folder)),
        ("open", lambda: store.open("alice", model).__enter__()),
        ("export", lambda: memory.export(root / "alice.mplus")),
    ):
        code, message = refused(work)
        intact = states.hash_of(Memory.load(folder, model)) == old
        found[f"read-only, {name}"] = {"errno": errno.errorcode.get(code or 0), "message": message, "intact": intact}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
