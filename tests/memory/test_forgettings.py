"""What another process forgets or deletes is dropped here as soon as this process uses the store again."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mplus import Embedder, MemoryStore, MPlus
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.testing import tiny_model
from tests.conftest import TINY
from tests.test_traces import CODE, questions, vectors

OPEN = "with store.open('anna', model) as memory: "
FORGETTING = {
    "deleted": "store.delete('anna')",
    "a source forgotten": OPEN + "memory.forget('told')",
    "emptied": OPEN + "memory.reset()",
    "rolled back": OPEN + "memory.rollback(memory.snapshots[0].id)",
    "a snapshot discarded": OPEN + "memory.discard(memory.snapshots[0].id)",
    "replaced by another text of its name": (
        OPEN + "memory.reset(); model.write(memory, 'Another text, which is new.', source='told')"
    ),
    "replaced from a backup": "store.restore(FOLDER + '-backup', 'anna', overwrite=True)",
    "a deletion that was killed": (
        "from mplus.storage.folder import Folder; from mplus.memory.recent import identity; "
        "Folder(store.root).exchange('.deleting-anna', identity(store.root / 'anna')); MemoryStore(FOLDER)"
    ),
}
USING: dict[str, Callable[[MemoryStore, MPlus], object]] = {
    "list": lambda store, model: store.list(),
    "open": lambda store, model: store.open("bob", model, keep_empty=False).__enter__(),
    "load": lambda store, model: store.load("carl", model),
}


CHILD = """
import json, sys
from mplus import MemoryStore
from mplus.testing import tiny_model

model = tiny_model()
for line in sys.stdin:
    FOLDER, statement = json.loads(line)
    store = MemoryStore(FOLDER)
    exec(statement)
    print("done", flush=True)
"""


class Elsewhere:
    """Another process, which does what it is told."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True)

    def __call__(self, statement: str, folder: Path) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([str(folder), statement]), file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    other = Elsewhere()
    yield other
    other.process.communicate()


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(vectors)


@pytest.fixture
def model(embedder: Embedder) -> MPlus:
    return tiny_model(memory=TINY).with_embedder(embedder)


@pytest.fixture
def store(tmp_path: Path, model: MPlus) -> MemoryStore:
    """A store whose memory "anna" this process has read."""
    store, plain = MemoryStore(tmp_path / "s"), tiny_model(memory=TINY)
    for name in ("anna", "carl"):
        with store.open(name, plain) as memory:
            memory.snapshot("before")
    store.backup(f"{tmp_path / 's'}-backup")
    with store.open("anna", plain) as memory:
        plain.write(memory, CODE, source="told", keep_text=True)
        plain.generate(memory, CODE, max_new_tokens=2)
    model.search(store.load("anna", plain), CODE)
    model.generate(store.load("anna", plain), CODE, max_new_tokens=2)
    assert "4711" in questions(model) and "anna" in store._recent._held
    return store


@pytest.mark.parametrize("way", FORGETTING)
def test_what_another_process_forgot_is_dropped_at_the_next_use(
    store: MemoryStore, model: MPlus, elsewhere: Elsewhere, way: str
) -> None:
    elsewhere(FORGETTING[way], store.root)
    USING["list"](store, model)
    assert "anna" not in store._recent._held and "4711" not in questions(model)
    assert all(spare.short_term() is not None for spare in SPARE_PREFIXES._kept)


@pytest.mark.parametrize("use", USING)
def test_every_use_of_the_store_looks(
    store: MemoryStore, model: MPlus, embedder: Embedder, elsewhere: Elsewhere, use: str
) -> None:
    elsewhere(FORGETTING["deleted"], store.root)
    USING[use](store, model)
    assert "anna" not in store._recent._held and "4711" not in questions(model)
    assert "4711" not in str(embedder._asked)


def test_what_is_forgotten_from_a_snapshot_alone_is_told(store: MemoryStore) -> None:
    plain, note = tiny_model(memory=TINY), store.root / ".forgotten"
    with store.open("anna", plain) as memory:
        memory.snapshot("with it")
        memory.rollback(memory.snapshots[0].id)
    before = note.stat().st_size
    with store.open("anna", plain) as memory:
        assert not memory.sources()
        memory.forget("told")
    assert note.stat().st_size > before


def test_what_another_process_only_adds_drops_nothing_until_it_is_read(
    store: MemoryStore, model: MPlus, elsewhere: Elsewhere
) -> None:
    elsewhere(OPEN + "model.write(memory, 'A note.', source='new')", store.root)
    store.list()
    assert "anna" in store._recent._held and "4711" in questions(model)
    assert "new" in {source.name for source in store.load("anna", tiny_model(memory=TINY)).sources()}


def test_the_note_of_forgetting_names_nothing(store: MemoryStore) -> None:
    store.delete("anna")
    assert set((store.root / ".forgotten").read_bytes()) == set(b".")
