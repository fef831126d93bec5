"""What is forgotten is also gone from what a process keeps beside memories to save work."""

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mplus import Embedder, Memory, MemoryStore, MPlus
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.testing import tiny_model
from mplus.traces import LatestTraces, drop_traces
from tests.conftest import TINY

CODE = "My code is 4711, what is it?"


def vectors(texts: list[str]) -> list[list[float]]:
    return [[len(text), text.count("e"), 1.0] for text in texts]


def questions(model: MPlus) -> str:
    asked: Any = model.weights._asked._made
    return " ".join(model.tokenizer.decode(list(key[0])) for key in asked)


def forgotten(model: MPlus, memory: Memory, folder: Path) -> None:
    memory.forget("told")


def adopted(model: MPlus, memory: Memory, folder: Path) -> None:
    fork = memory.fork()
    fork.forget("told")
    memory.adopt(fork)


def emptied(model: MPlus, memory: Memory, folder: Path) -> None:
    memory.reset()


def deleted(model: MPlus, memory: Memory, folder: Path) -> None:
    store = MemoryStore(folder)
    with store.open("anna", model) as kept:
        model.write(kept, "A note.")
    store.delete("anna")


@pytest.mark.parametrize("way", [forgotten, adopted, emptied, deleted])
def test_what_is_forgotten_is_no_longer_among_the_latest_questions(
    way: Callable[[MPlus, Memory, Path], None], tmp_path: Path
) -> None:
    embedder = Embedder(vectors)
    model = tiny_model(memory=TINY).with_embedder(embedder)
    memory = model.new_memory()
    model.write(memory, CODE, source="told", keep_text=True)
    model.search(memory, CODE)
    first = model.generate(memory, CODE, max_new_tokens=4)
    assert "4711" in questions(model) and "4711" in str(embedder._asked._made)
    way(model, memory, tmp_path)
    assert "4711" not in questions(model) and not len(embedder._asked)
    if way is deleted:
        assert model.generate(memory, CODE, max_new_tokens=4).text == first.text, "they are made again"


def test_what_was_read_of_a_forgotten_text_is_not_kept_for_a_later_read() -> None:
    SPARE_PREFIXES.clear()
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, "The library opens at nine, and closes at six in the evening.", source="library")
    model.write(memory, "4711", source="told")  # too short for a chunk, so it is written anew for a read
    model.generate(memory, CODE, max_new_tokens=4)
    gc.collect()
    assert SPARE_PREFIXES._kept and len(model._requests.present._with_tails)
    memory.forget("told")
    gc.collect()
    assert not SPARE_PREFIXES._kept and not len(model._requests.present._with_tails)


def test_the_latest_texts_are_kept_until_something_is_forgotten() -> None:
    latest = LatestTraces[str, int](2)
    for text in ("a", "bb", "a", "ccc"):
        latest.put(text, len(text))
    assert [latest.get(text) for text in ("a", "bb", "ccc")] == [None, 2, 3], "what was put first made room"
    drop_traces()
    assert not len(latest) and latest.get("ccc") is None


MEASURED = """
import sys
from mplus.inert import encode_inert
from mplus.testing import byte_tokenizer, tiny_model

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

tokenizer = tiny_model().tokenizer if sys.argv[1] == "model" else byte_tokenizer()
def encode(first, last):
    for number in range(first, last):
        tokenizer(f"{number}" * 40)
        if sys.argv[1] == "model":
            encode_inert(tokenizer, f"{number}" * 40)

encode(1000, 1500)
before = resident()
encode(2000, 5000)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_models_tokenizer_keeps_no_words() -> None:
    def grown(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", MEASURED, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = grown("tokenizer")
    assert kept > 6e6, "tokenizers keep no words any more: then keep_no_words is not needed"
    assert grown("model") < kept / 4
