"""Every test runs offline, on the CPU, with shapes checked at every call.

torch is imported by what needs it: the process that only hands out tests to workers does not.
"""

import gc
import importlib.util
import os
import socket
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models are quickest on one thread. Two threads in each of two workers wait for each other by spinning: every test
# takes many times as long. Set before torch is imported, this is also so in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook finds it by name)

install_import_hook("mplus", "tests.typecheck.checked")

import hypothesis
import pytest

from mplus.config import MemoryConfig
from tests.forcing import without_waiting

if TYPE_CHECKING:
    from mplus.model import MPlus

without_waiting()

# A first call checks shapes and may be slow; no test is about time.
hypothesis.settings.register_profile("mplus", deadline=None)
hypothesis.settings.load_profile("mplus")

TINY = MemoryConfig(
    chunk_tokens=32,
    minimum_chunk_tokens=8,
    tokens_per_write=32,
    short_term_tokens=96,
    recalled_tokens=64,
    consolidate_every=3,
    long_term_dtype="float32",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest tests come first, in one worker of several: it alone loads the default model, and the small tests that
    # are left at the end keep all workers at work until the end.
    items.sort(key=lambda item: item.get_closest_marker("default_model") is None)


def pytest_collection_finish() -> None:
    # What is imported stays: the collector need not look through millions of objects again and again.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX:
            return real(self, address)
        if isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost"):
            return real(self, address)
        raise OSError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def model() -> "MPlus":
    from mplus.testing import tiny_model

    return tiny_model(memory=TINY)


@pytest.fixture
def text() -> str:
    return " ".join(f"Sentence {i} says that box {i * 7 % 13} is {'red' if i % 3 else 'blue'}." for i in range(30))


@pytest.fixture(scope="session")
def default_model() -> "MPlus":
    from mplus.checkpoint.catalog import BUILT_IN, is_pulled
    from mplus.model import MPlus

    name = "smol-135m"
    if not is_pulled(name) and importlib.util.find_spec(BUILT_IN[name].module) is None:
        pytest.skip(f"{name} is not pulled and {BUILT_IN[name].package} is not installed")
    return MPlus.from_pretrained(name)
