"""``MPlusStore``: LangGraph's long-term store, kept in latent memory and searched with the model's own scorer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
)

from mplus import Memory, UnknownNameError, metadata_filter
from mplus_integrations.arguments import checked_several
from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.places import KnownPlaces, Namespace
from mplus_integrations.latents import all_or_nothing, checked_key
from mplus_integrations.settings import instead_where
from mplus_integrations.worker import in_thread

ITEM = "mplus_item"
"""Metadata key of sources that are items of a store; its value is the item."""

DEFAULT_KEY = "langgraph-store"
"""The memory that items are in where no other is named."""

INSTEAD_OF_STORES = {
    "conn": "chat=MPlusChat(store=mplus.MemoryStore(folder))",
    "index": "fields, and chat=MPlusChat(embedder=…) for an embedder",
    "ttl": "a memory with MemoryConfig(age_limit_seconds=…)",
}
"""Ours for arguments of other stores of LangGraph."""


class MPlusStore(KnownPlaces):
    """Items under namespaces, for ``create_agent(store=…)`` and LangGraph's ``compile(store=…)``.

        store = MPlusStore(chat)
        store.put(("users", "anna"), "music", {"likes": "cello suites"})
        store.search(("users",), query="Which music does she like?")

    Items are written into latent memory, and their values are kept too, as JSON: a tuple comes back as a list. The
    items of all namespaces are in one separate memory; an answer reads it only if the call names it with
    ``memory_key``.

    Args:
        chat: Whose model and ``MemoryStore`` are used; without a store, items live as long as the chat.
        memory_key: The memory's name; None: "langgraph-store". Give a user's own, and that user's answers read
            the items too.
        fields: Paths into a value that are searched, as in LangGraph's ``index={"fields": …}``; None: all of it.
        others: No others are accepted; for those of other stores the error says what to write instead.
    """

    def __init__(
        self,
        chat: MPlusChat,
        *,
        memory_key: str | None = None,
        fields: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        known = {"chat", "memory_key", "fields"}
        UnknownNameError.check(others, known, of="MPlusStore", instead={**instead_where(known), **INSTEAD_OF_STORES})
        self.chat = chat
        self.memory_key = checked_key(memory_key) or DEFAULT_KEY
        self.fields = _checked_fields(fields, "fields")

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations. Reads see the store before the puts; after an error nothing is put.

        Raises:
            ValueError: A value is not JSON, a key is empty, or an operation or filter is unknown.
        """
        ops = checked_several(ops, "ops")
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        with self._opened() as memory, memory.adding():
            kept = {(item.namespace, item.key): item for item in _kept(memory)}
            results = [self._result(memory, kept, op) for op in ops]
            if puts:
                items = [self._item(op, kept.get(place)) for place, op in puts.items() if op.value is not None]
                self._put(memory, [kept[place].source for place in puts if place in kept], items)
        return results

    def _put(self, memory: Memory, gone: Sequence[str], items: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Replace sources; several calls that only add go through the model together."""
        if gone:
            with all_or_nothing(memory) as fork:
                for name in gone:
                    fork.forget(name)
                self._put(fork, (), items)
        elif items:
            names, texts, abouts = zip(*items, strict=True)
            self.chat.loaded.write(memory, texts, source=names, metadata=abouts, keep_text=True, later=True)

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """``batch`` without blocking the event loop."""
        return await in_thread(self.batch, ops)

    def _opened(self) -> Any:
        return self.chat.opened(None if self.chat.memory is not None else self.memory_key)

    def _result(self, memory: Memory, kept: "Mapping[tuple[Namespace, str], _Kept]", op: Op) -> Result:
        if isinstance(op, GetOp):
            found = kept.get((op.namespace, op.key))
            return None if found is None else found.item()
        if isinstance(op, SearchOp):
            return self._search(memory, kept, op)
        if isinstance(op, ListNamespacesOp):
            return _namespaces(kept, op)
        if isinstance(op, PutOp):  # pyright: ignore[reportUnnecessaryIsInstance]
            return None
        raise ValueError(f"Operation {op!r:.80}: expected a GetOp, SearchOp, PutOp or ListNamespacesOp.")

    def _search(self, memory: Memory, kept: "Mapping[tuple[Namespace, str], _Kept]", op: SearchOp) -> list[SearchItem]:
        if isinstance(op.namespace_prefix, str) or min(op.limit, op.offset) < 0:
            raise ValueError(
                f"namespace_prefix={op.namespace_prefix!r:.40}, limit={op.limit}, offset={op.offset}: expected a tuple "
                "of labels, such as ('users', 'anna'), and numbers that are not negative."
            )
        depth, fits = len(op.namespace_prefix), metadata_filter(op.filter or {}, absent=None)
        wanted = {
            one.source: one
            for one in reversed(list(kept.values()))  # the newest first
            if one.namespace[:depth] == op.namespace_prefix and fits(one.value)
        }
        if not op.query or not wanted:
            ranked: list[tuple[_Kept, float | None]] = [(one, None) for one in wanted.values()]
        else:
            searched = {source for source, one in wanted.items() if one.searched}
            found = self.chat.loaded.search(memory, op.query, limit=None, where=lambda name, _: name in searched)
            ranked = [(wanted[source.source], source.score) for source in found]
            ranked += [(one, None) for one in wanted.values() if not one.searched]
        return [one.found(score) for one, score in ranked[op.offset : op.offset + op.limit]]

    def _item(self, op: PutOp, before: "_Kept | None") -> tuple[str, str, dict[str, Any]]:
        """The name, text and metadata of the source that is written for an item."""
        if not op.key:
            raise ValueError(f"Key {op.key!r} in namespace {op.namespace}: expected a string that is not empty.")
        value = _as_json(op)
        fields = self.fields if op.index is None else _checked_fields(op.index, "index")
        text = _text(value, fields or None)
        now = datetime.now(UTC).isoformat()
        item = {
            "namespace": list(op.namespace),
            "key": op.key,
            "value": value,
            "created_at": before.created_at if before else now,
            "updated_at": now,
            "searched": op.index is not False and bool(text),
        }
        return _source(op.namespace, op.key), text or _text(value, None) or op.key, {ITEM: item}


class _Kept(NamedTuple):
    """An item, as it is kept in a source's metadata."""

    source: str
    namespace: Namespace
    key: str
    value: dict[str, Any]
    created_at: str
    updated_at: str
    searched: bool

    def _parts(self) -> dict[str, Any]:
        return {
            "namespace": self.namespace,
            "key": self.key,
            "value": json.loads(json.dumps(self.value)),  # a copy that the caller may change
            "created_at": datetime.fromisoformat(self.created_at),
            "updated_at": datetime.fromisoformat(self.updated_at),
        }

    def item(self) -> Item:
        return Item(**self._parts())

    def found(self, score: float | None) -> SearchItem:
        return SearchItem(**self._parts(), score=score)


ITEM_FIELDS = frozenset(_Kept._fields) - {"source"}


def _as_json(op: PutOp) -> dict[str, Any]:
    """A copy of the value of an item as JSON, in which a tuple is a list.

    Raises:
        ValueError: It is no mapping, or something in it is not of JSON, such as a number as a key.
    """
    what = f"Value of {op.key!r:.60} in namespace {op.namespace}"
    expected = "expected a dict of strings, numbers, booleans, lists and dicts whose keys are strings"
    try:
        value = json.loads(json.dumps(op.value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON ({error}): {expected}.") from error
    if not isinstance(op.value, Mapping) or value != _with_lists(op.value):
        raise ValueError(f"{what} is not JSON, from which it would come back as {value!r:.60}: {expected}.")
    return value


def _with_lists(value: Any) -> Any:
    """A value whose tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _with_lists(one) for key, one in cast("Mapping[Any, Any]", value).items()}
    return [_with_lists(one) for one in cast("list[Any]", value)] if isinstance(value, list | tuple) else value


def _checked_fields(given: Any, name: str) -> list[str] | None:
    """Paths into values; False stands for none.

    Raises:
        ValueError: It is a single path, not several.
    """
    return None if given is None or given is False else checked_several(given, name, str)


def _kept(memory: Memory) -> Iterable[_Kept]:
    for name, told in memory.told().items():
        item = told.metadata.get(ITEM)
        about: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
        # What something else wrote under this mark is no item.
        if about.keys() == ITEM_FIELDS and isinstance(about["value"], dict) and isinstance(about["namespace"], list):
            fields: dict[str, Any] = {**about, "namespace": tuple(about["namespace"])}
            yield _Kept(name, **fields)


def _source(namespace: Namespace, key: str) -> str:
    # JSON, because labels and keys may contain any separator.
    return json.dumps([*namespace, key], ensure_ascii=False)


def _text(value: Mapping[str, Any], fields: Sequence[str] | None) -> str:
    """The text that is written for a value: its strings, each after its name if there are several."""
    if fields is not None:
        return "\n".join(text for field in fields for text in get_text_at_path(value, field)).strip()
    said = {
        name: part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for name, part in value.items()
    }
    return "\n".join(said.values() if len(said) == 1 else (f"{name}: {part}" for name, part in said.items())).strip()


def _namespaces(kept: Iterable[tuple[Namespace, str]], op: ListNamespacesOp) -> list[Namespace]:
    conditions = op.match_conditions or ()
    matching = {ns[: op.max_depth] for ns, _ in kept if all(_leads(condition, ns) for condition in conditions)}
    return sorted(matching)[op.offset : op.offset + op.limit]


def _leads(condition: MatchCondition, namespace: Namespace) -> bool:
    size = len(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"match_type={condition.match_type!r}: expected 'prefix' or 'suffix'.")
    part = namespace[:size] if condition.match_type == "prefix" else namespace[len(namespace) - size :]
    return len(namespace) >= size and all(
        want in ("*", label) for want, label in zip(condition.path, part, strict=True)
    )
