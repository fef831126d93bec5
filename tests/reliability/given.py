"""Give whatever there is to every public method: it works, or an error names the argument.

    python -m tests.reliability.given FOLDER

A raw error of the inside is a fault, and so is what is taken and goes wrong later. This is a process of its own, since the
type checks of the other tests would refuse all of it before we do. Prints JSON.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mplus import KeyVault, Memory, MemoryKey, MemoryStore, MPlusError, UrlStore
from tests.reliability import states

OTHERS = (None, 5, 2.5, True, "", "zz", b"b", [], {}, object(), [None], float("nan"), -1)
LONG = "Some text that is long enough."
SILENTLY_WRONG: tuple[tuple[str, str, object], ...] = (
    ("new_memory", "seed", "zz"),  # which a save would refuse
    ("new_memory", "seed", True),
    ("snapshot", "label", 5),  # the same
    ("write", "text", b"bytes are no token ids"),
    ("write_batch", "sources", "b"),
    ("generate_batch", "prompts", "h"),
    ("with_calibration", "calibration", "zz"),
    ("MemoryStore", "max_memory_bytes", float("nan")),  # which nothing is above
    ("MemoryStore", "max_resident_bytes", None),
    ("MemoryStore", "vault", "keys"),
    ("MemoryStore", "root", ""),
    ("backup", "target", ""),
    ("save", "place", ""),
    ("save", "key", b"0" * 32),
    ("open", "timeout", -1),  # which a lock takes for "as long as it lasts"
    ("serve", "max_running", 2.5),
    ("search", "memory", None),
    ("search", "query", None),
    ("UrlStore", "vault", "keys"),
    ("UrlStore", "max_local_bytes", -1),
)
"""What was taken once and went wrong later, or said nothing of the argument."""

Call = Callable[..., object]


def held(folder: Path) -> SimpleNamespace:
    """A model, a memory and a store to call."""
    model = states.model()
    memory = model.new_memory()
    model.write(memory, "The cat sat on the mat today.", source="a")
    snapshot = memory.snapshot("one")
    memory.save(folder / "saved")
    store = MemoryStore(folder / "store")
    store.put("alice", memory)
    store.backup(folder / "backup")
    return SimpleNamespace(model=model, memory=memory, snapshot=snapshot, store=store, vault=KeyVault(folder / "keys"))


def opened(store: MemoryStore, **given: Any) -> None:
    with store.open(**given):
        pass


def calls(held: SimpleNamespace) -> dict[str, tuple[Call, Mapping[str, Any]]]:
    """Every public method that takes something, with what is right."""
    model, memory, store, vault, here = held.model, held.memory, held.store, held.vault, Path.cwd()
    fork = memory.fork
    return {
        "generate": (model.generate, {"memory": memory, "prompt": "hi there"}),
        "stream": (model.stream, {"memory": memory, "prompt": "hi there"}),
        "generate_batch": (model.generate_batch, {"memories": [memory], "prompts": ["hi"], "where": None}),
        "search": (model.search, {"memory": memory, "query": "cat", "limit": 4, "where": None, "since": None}),
        "write": (model.write, {"memory": fork(), "text": LONG, "source": "s", "progress": None, "at": None}),
        "write_batch": (
            model.write_batch,
            {"memories": [fork()], "texts": [LONG], "sources": ["b"], "metadata": None, "progress": None, "at": None},
        ),
        "new_memory": (model.new_memory, {"seed": 0, "config": states.CONFIG}),
        "with_recall": (model.with_recall, {"memory": memory, "recall": model.memory_config.recall}),
        "warm": (model.warm, {"memory": memory, "seconds": 0.1}),
        "replay": (model.replay, {"memory": memory, "state": memory.state, "entry": memory.state.ledger[0]}),
        "serve": (lambda **given: model.serve(**given).close(), {"max_running": 1, "max_waiting": 1}),
        "count_tokens": (model.count_tokens, {"prompt": "x"}),
        "prompt_room": (model.prompt_room, {"memory": memory}),
        "read_request": (model.read_request, {"memory": memory, "prompt": "x", "where": None, "as_of": None}),
        "with_embedder": (model.with_embedder, {"embedder": len, "memory": None}),
        "with_calibration": (model.with_calibration, {"calibration": None}),
        "as_of": (memory.as_of, {"time": 0}),
        "adopt": (fork().adopt, {"fork": memory}),
        "is_unchanged_since": (memory.is_unchanged_since, {"fork": memory}),
        "snapshot": (fork().snapshot, {"label": "x"}),
        "rollback": (fork().rollback, {"snapshot": held.snapshot}),
        "discard": (fork().discard, {"snapshot": held.snapshot}),
        "diff": (memory.diff, {"before": held.snapshot}),
        "forget": (fork().forget, {"source": "a", "rebuild": None, "progress": None}),
        "pin": (fork().pin, {"source": "a"}),
        "unpin": (fork().unpin, {"source": "a"}),
        "save": (memory.save, {"place": here / "x", "key": None}),
        "export": (memory.export, {"place": here / "x.mplus", "key": None}),
        "load": (Memory.load, {"place": here / "saved", "model": model, "key": None}),
        "sources": (memory.sources, {"since": None, "until": None, "as_of": None}),
        "MemoryStore": (
            MemoryStore,
            {"root": "s2", "max_memory_bytes": 1, "max_total_bytes": 1, "max_resident_bytes": 1, "vault": None},
        ),
        "open": (
            lambda **given: opened(store, **given),
            {"name": "bob", "model": model, "timeout": 0.2, "autosave_seconds": None, "id": None},
        ),
        "store.load": (store.load, {"name": "alice", "model": model}),
        "put": (store.put, {"name": "carl", "memory": memory}),
        "delete": (store.delete, {"name": "nobody", "timeout": 0.2}),
        "copy": (store.copy, {"name": "alice", "new_name": "dora"}),
        "verify": (store.verify, {"name": "alice"}),
        "backup": (store.backup, {"target": here / "b2"}),
        "restore": (store.restore, {"source": here / "backup", "name": "alice", "overwrite": True}),
        "path": (store.path, {"name": "alice"}),
        "name_for": (store.name_for, {"id": "alice"}),
        "KeyVault": (KeyVault, {"folder": "keys", "master": None}),
        "with_passphrase": (KeyVault.with_passphrase, {"folder": "keys", "passphrase": "words"}),
        "key": (vault.key, {"name": "x"}),
        "destroy": (vault.destroy, {"name": "x"}),
        "MemoryKey": (MemoryKey, {"secret": b"0" * 32}),
        "UrlStore": (UrlStore, {"url": "memory://given", "folder": "u", "max_local_bytes": None, "vault": None}),
    }


def raw_errors(known: SimpleNamespace) -> list[str]:
    """Calls that ended with an error of the inside."""
    raw: list[str] = []
    for name, (call, right) in calls(known).items():
        for argument in right:
            for other in OTHERS:
                if name == "with_passphrase" and other == "zz":
                    continue  # it would be a passphrase, and takes a second
                try:
                    call(**{**right, argument: other})
                except (ValueError, MPlusError):
                    continue
                except Exception as error:
                    raw.append(f"{name}({argument}={other!r:.20}): {error!r:.100}")
    return raw


def taken(known: SimpleNamespace) -> list[str]:
    """Calls that should have been refused by an error that names the argument."""
    found: list[str] = []
    for name, argument, value in SILENTLY_WRONG:
        call, right = calls(known)[name]
        try:
            call(**{**right, argument: value})
        except ValueError as error:
            if not re.search(rf"(place|{argument})=.*expected", str(error)):
                found.append(f"{name}({argument}={value!r}): {error}")
        else:
            found.append(f"{name}({argument}={value!r}) is taken")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    os.chdir(folder)  # where a text counts as a path
    known = held(folder)
    print("\n" + json.dumps({"raw": raw_errors(known), "taken": taken(known)}))


if __name__ == "__main__":
    main()
