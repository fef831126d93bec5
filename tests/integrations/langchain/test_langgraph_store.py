"""``MPlusStore`` beside LangGraph's own in-memory store, and what only it can do."""

import random
from typing import Any

import pytest
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.store.base import GetOp, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusStore
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
ANNA, BOB = ("users", "anna"), ("users", "bob")


@pytest.fixture
def store() -> MPlusStore:
    store = MPlusStore(MPlusChat(model=MODEL))
    store.put(ANNA, "music", {"likes": "Anna plays the cello on Mondays."})
    store.put(ANNA, "home", {"city": "Graz", "rooms": 3})
    store.put(BOB, "music", {"likes": "Bob sings in a choir."})
    return store


def test_what_was_put_is_got_changed_and_deleted(store: MPlusStore) -> None:
    item = store.get(ANNA, "home")
    assert item is not None
    assert (item.namespace, item.key, item.value) == (ANNA, "home", {"city": "Graz", "rooms": 3})
    item.value["rooms"] = 99
    assert store.get(ANNA, "home") is not None and store.get(ANNA, "home").value["rooms"] == 3  # type: ignore[union-attr]
    store.put(ANNA, "home", {"city": "Linz"})
    later = store.get(ANNA, "home")
    assert later is not None and later.value == {"city": "Linz"}
    assert later.created_at == item.created_at and later.updated_at > item.updated_at
    store.delete(ANNA, "home")
    assert store.get(ANNA, "home") is None and store.get(("users",), "music") is None
    assert store.get(BOB, "music") is not None


def test_search_ranks_by_the_retriever(store: MPlusStore) -> None:
    found = store.search(("users",), query="Anna plays the cello on Mondays.")
    assert (found[0].namespace, found[0].key) == (ANNA, "music")
    scores = [f.score for f in found]
    assert None not in scores and scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert len(store.search(("users",), query="music", limit=1)) == 1
    second = store.search(("users",), query="Anna plays the cello on Mondays.", offset=1)
    assert [f.key for f in second] == [f.key for f in found[1:]]


def test_search_keeps_to_its_namespace_and_filter(store: MPlusStore) -> None:
    assert {f.key for f in store.search(ANNA, query="music")} == {"music", "home"}
    assert [f.key for f in store.search((), filter={"rooms": {"$gte": 3, "$lt": 4}})] == ["home"]
    assert [f.key for f in store.search((), query="Graz", filter={"city": "Graz"})] == ["home"]
    assert store.search(("users", "ann"), query="music") == []
    assert store.search((), filter={"rooms": {"$gt": 3}}) == []
    with pytest.raises(ValueError, match=r"\$like"):
        store.search((), filter={"city": {"$like": "G%"}})


def test_fields_decide_what_is_searched() -> None:
    store = MPlusStore(MPlusChat(model=MODEL), fields=["text"])
    store.put(ANNA, "a", {"text": "The red box is in the attic.", "note": "x"})
    store.put(ANNA, "b", {"text": "The green box.", "note": "The red box is in the attic."})
    store.put(ANNA, "c", {"text": "The red box is in the attic."}, index=False)
    store.put(ANNA, "d", {"note": "The red box is in the attic."}, index=["note"])
    store.put(ANNA, "e", {"other": "no text at all"})
    found = store.search(ANNA, query="The red box is in the attic.")
    scores = {f.key: f.score for f in found}
    assert [f.key for f in found][2:] == ["b", "e", "c"], "what is not searched comes last, the latest first"
    assert scores["a"] == scores["d"] and scores["c"] is None and scores["e"] is None


def test_it_agrees_with_the_in_memory_store() -> None:
    rng = random.Random(0)
    ours, theirs = MPlusStore(MPlusChat(model=MODEL)), InMemoryStore()
    namespaces = [("a",), ("a", "b"), ("a", "b", "c"), ("d", "b"), ("d",)]
    for _ in range(40):
        place, key = rng.choice(namespaces), rng.choice("xyz")
        value: dict[str, Any] | None = {"n": rng.randrange(3), "tags": {"t": rng.choice("pq")}, "l": [1, 2]}
        if rng.random() < 0.3:
            value = None
        for one in (ours, theirs):
            one.delete(place, key) if value is None else one.put(place, key, dict(value))
    for filter_ in (None, {"n": 1}, {"n": {"$ne": 1}}, {"tags": {"t": "p"}}, {"l": [1, 2]}, {"l": [1]}, {"z": 1}):
        for prefix in ((), ("a",), ("a", "b"), ("d",), ("b",)):
            found = [
                sorted((f.namespace, f.key, str(f.value)) for f in s.search(prefix, filter=filter_, limit=99))
                for s in (ours, theirs)
            ]
            assert found[0] == found[1], (filter_, prefix)
    kept = {tuple(f.namespace) for f in theirs.search((), limit=99)}
    for options in (
        {},
        {"prefix": ("a",)},
        {"suffix": ("b",)},
        {"prefix": ("*", "b")},
        {"max_depth": 1},
        {"prefix": ("a",), "max_depth": 2},
        {"limit": 2, "offset": 1},
    ):
        options = dict(options)
        expected = [ns for ns in InMemoryStoreOf(kept).list_namespaces(**options)]  # type: ignore[arg-type]
        assert ours.list_namespaces(**options) == expected, options  # type: ignore[arg-type]


def InMemoryStoreOf(namespaces: set[tuple[str, ...]]) -> InMemoryStore:
    """The in-memory store goes on listing namespaces whose items are deleted; a fresh one does not."""
    store = InMemoryStore()
    for namespace in namespaces:
        store.put(namespace, "k", {})
    return store


async def test_a_batch_reads_before_it_puts_async_too(store: MPlusStore) -> None:
    ops = [PutOp(ANNA, "new", {"x": 1}), GetOp(ANNA, "new"), PutOp(ANNA, "new", {"x": 2}), SearchOp(BOB)]
    first = await store.abatch(ops)
    assert first[:3] == [None, None, None] and len(first[3]) == 1  # type: ignore[arg-type]
    item = await store.aget(ANNA, "new")
    assert item is not None and item.value == {"x": 2}
    assert [f.key for f in await store.asearch(ANNA, query="cello", limit=1)] != []
    assert await store.alist_namespaces() == [ANNA, BOB]


def test_a_store_on_disk_survives_a_restart(tmp_path: Any) -> None:
    MPlusStore(MPlusChat(model=MODEL, store=MemoryStore(tmp_path))).put(ANNA, "home", {"city": "Graz", "at": (1, 2)})
    again = MPlusStore(MPlusChat(model=MODEL, store=MemoryStore(tmp_path)))
    found = again.search(ANNA, query="Where does she live?")
    assert [(f.key, f.value) for f in found] == [("home", {"city": "Graz", "at": [1, 2]})]


def test_answers_read_items_only_where_the_memory_is_named(store: MPlusStore) -> None:
    assert store.chat.invoke("hi", max_tokens=2).response_metadata["prefix_tokens"] == 0
    named = store.chat.invoke("hi", max_tokens=2, memory_key="langgraph-store")
    assert named.response_metadata["prefix_tokens"] > 0
    mine = MPlusStore(store.chat, memory_key="anna")
    mine.put(ANNA, "home", {"city": "Graz"})
    assert store.chat.invoke("hi", max_tokens=2, memory_key="anna").response_metadata["prefix_tokens"] > 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("k", {"x": object()}, "not JSON"), ("k", {"x": float("nan")}, "not JSON"), ("", {"x": 1}, "Key ''")],
)
def test_values_that_cannot_be_stored_are_refused_and_nothing_is_put(
    store: MPlusStore, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        store.batch([PutOp(ANNA, "fine", {"x": 1}), PutOp(ANNA, key, value)])
    assert store.get(ANNA, "fine") is None


def test_odd_names_do_not_meet() -> None:
    store = MPlusStore(MPlusChat(model=MODEL))
    places = [(("a/b",), "c"), (("a",), "b/c"), (("a", "b"), "c"), (('a"', "☃"), 'k"'), (("a",), "..")]
    for n, (namespace, key) in enumerate(places):
        store.put(namespace, key, {"n": n})
    assert [store.get(*place).value["n"] for place in places] == list(range(len(places)))  # type: ignore[union-attr]
    store.put(("empty",), "e", {})
    assert store.get(("empty",), "e").value == {}  # type: ignore[union-attr]


def test_tools_reach_the_store(store: MPlusStore) -> None:
    def city(runtime: ToolRuntime) -> str:
        """The city of a user."""
        assert runtime.store is not None
        return runtime.store.get(ANNA, "home").value["city"]  # type: ignore[union-attr]

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode([city]))
    graph.add_edge(START, "tools")
    call = AIMessage("", tool_calls=[{"name": "city", "args": {}, "id": "1"}])
    done = graph.compile(store=store).invoke({"messages": [HumanMessage("Where?"), call]})
    assert isinstance(done["messages"][-1], ToolMessage) and done["messages"][-1].content == "Graz"
