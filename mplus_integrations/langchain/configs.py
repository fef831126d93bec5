"""What the config of a call says about its memory and its conversation: the one place that decides, for every path."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackManager, Callbacks
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import CONFIG_KEYS, ensure_config, var_child_runnable_config

from mplus import Memory, MemoryStore
from mplus_integrations.langchain.messages import is_summary

CONVERSATION_NAMES = ("conversation_id", "thread_id", "session_id")
"""Names of a conversation in a config; chains, graphs and histories differ in theirs."""
MISNAMED = re.compile(
    r"(user|chat|thread|session|conversation|tenant|account|customer|member)_?(id|key)?|memory_?(id|name)", re.I
)
"""Names in a config that are meant for a user or a conversation, and that nothing reads."""
READ = "__pregel_read"
"""Where LangGraph keeps what reads the state of a graph in its nodes."""
SAVER = "__pregel_checkpointer"
"""Where LangGraph keeps the checkpointer of a graph."""
TAGS_OF_RUNS = ("seq:step:", "map:key:", "graph:step:", "condition:", "branch:", "retry:attempt:")
"""What tags of steps begin with that LangChain and LangGraph pass their whole config on to."""
RUNTIME = "__pregel_runtime"
"""Where LangGraph keeps the runtime of a graph, which has the context that its caller gave."""


def asked_in(
    config: RunnableConfig | None,
    kwargs: dict[str, Any],
    callbacks: Callbacks = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    memory: Memory | None = None,
    store: MemoryStore | None = None,
    memory_key: str | None = None,
    by_thread: bool = False,
) -> dict[str, Any]:
    """Arguments of a call, with the names of its memory and of its conversation.

    The memory is named by the arguments; else by ``memory_key``, else by ``user_id`` of the context, the config or the
    metadata; else by the object's own ``memory_key``; else, where there is a store, by the conversation. The context of
    a graph counts before all else; what the call itself was given counts before what the run around it has.

    Args:
        config: The config of the call; None: that of the running graph or chain.
        kwargs: The arguments of the call.
        callbacks: Its callbacks, beside those of the config. They have the metadata of chains that pass no more on.
        metadata: Its metadata.
        memory: The only memory of the object that is asked; no user and no conversation has another one.
        store: The object's store.
        memory_key: The object's own name of a memory.
        by_thread: Whether a conversation names a memory without a store too.

    Raises:
        ValueError: There is a store and no name, but one is meant that nobody reads, such as ``userId``: everybody
            would get the same memory.
    """
    known = ensure_config(config)
    context, inherited = _given_in(known)
    running = [context, inherited]
    places = [context, *_given_to_call(config, callbacks, metadata or {}), inherited, known.get("metadata", {})]
    places += _of_manager(known.get("callbacks"))
    steps = str(_first([*running, *places], ("checkpoint_ns",)) or "").split("|")
    conversation = _first([{CONVERSATION_NAMES[0]: kwargs.get("conversation_id")}, *places], CONVERSATION_NAMES)
    of_graph = {str(place[name]) for place in running for name in CONVERSATION_NAMES if place.get(name) is not None}
    key = _first(places, ("memory_key",))
    if key is None and memory is None:
        key = _first(places, ("user_id",))
        if key is None and memory_key is None and (store is not None or by_thread):
            key = None if kwargs.get("conversation_id") == "" else conversation
        is_named = memory_key is not None or kwargs.get("memory_key") is not None or kwargs.get("memory") is not None
        if key is None and not is_named and store is not None and kwargs.get("conversation_id") != "":
            _refuse_misnamed([*_contexts(known), inherited, (config or {}).get("configurable") or {}])
    found = {
        "memory_key": key,
        "conversation_id": None if conversation is None else str(conversation),
        "conversation_part": "|".join(step.partition(":")[0] for step in steps) or None,
        "conversation_says": _kept_in_thread(known) if str(conversation) in of_graph else None,
    }
    return {
        **kwargs,
        **{name: value for name, value in found.items() if value is not None and kwargs.get(name) is None},
    }


def has_lost_names(config: RunnableConfig | None) -> bool:
    """Whether a chain such as ``RetrievalQA`` calls, which passes on its callbacks but nothing that was configured.

    What runs within a sequence, a map or a graph has the config of that run around it, or its tag. Wrappers such as
    ``with_config`` and ``EnsembleRetriever`` make a whole config of the callbacks that they get, without either.
    """
    callbacks = None if config is None else config.get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return False
    around = (var_child_runnable_config.get() or {}).get("callbacks")
    if isinstance(around, BaseCallbackManager) and around.parent_run_id is not None:
        return False
    return not any(tag.startswith(TAGS_OF_RUNS) for tag in callbacks.tags)


def _given_to_call(
    config: RunnableConfig | None, callbacks: Callbacks, metadata: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """What a call was given itself, without what it inherits from the run around it.

    The metadata of its callbacks has that of the run too; it counts where it says something else.
    """
    around = var_child_runnable_config.get() or {}
    known = [around.get("metadata") or {}, *_of_manager(around.get("callbacks"))]
    own = cast("dict[str, Any]", config or {})
    beside = {name: value for name, value in own.items() if name not in CONFIG_KEYS}
    told = [*_of_manager(callbacks), *_of_manager(own.get("callbacks"))]
    new = [
        {name: value for name, value in place.items() if all(one.get(name) != value for one in known)} for place in told
    ]
    return [{**(own.get("configurable") or {}), **beside}, metadata, own.get("metadata") or {}, *new]


def _of_manager(callbacks: Callbacks) -> list[Mapping[str, Any]]:
    """The metadata that callbacks have, if a run gave them."""
    return [callbacks.metadata, callbacks.inheritable_metadata] if isinstance(callbacks, BaseCallbackManager) else []


def _given_in(config: RunnableConfig) -> list[Mapping[str, Any]]:
    """The context of the running graph, as a mapping, and what may be configured."""
    # Some retrievers over others make a config of their own, which has the callbacks of the run around it and no names.
    configurable = config.get("configurable") or (var_child_runnable_config.get() or {}).get("configurable") or {}
    context = getattr(configurable.get(RUNTIME), "context", None)
    return [as_mapping(context), configurable]


def _contexts(config: RunnableConfig) -> list[Mapping[str, Any]]:
    """All that the context of the running graph has."""
    context = getattr(config.get("configurable", {}).get(RUNTIME), "context", None)
    return [context if isinstance(context, Mapping) else getattr(context, "__dict__", {})]


def _refuse_misnamed(places: Sequence[Mapping[str, Any]]) -> None:
    for name, value in ((name, value) for place in places for name, value in place.items()):
        if value not in (None, "") and MISNAMED.fullmatch(str(name)):
            raise ValueError(
                f"{name}={value!r:.60} in a config or context names no memory, so that everybody would read one: "
                f"expected memory_key, user_id, {', '.join(CONVERSATION_NAMES)}. Rename it, or give memory_key, too."
            )


def is_kept(config: RunnableConfig) -> bool:
    """Whether a checkpointer keeps the state of the running graph from one run to the next.

    Without one, and in a graph within another one, the state begins anew with every run and has what the caller sends,
    which may be a part of what was said.
    """
    known = config.get("configurable", {})
    return known.get(SAVER) is not None and not any(":" in graph for graph in _graphs(config))


def graph_of(config: RunnableConfig) -> str:
    """The running graph's place within others; empty for one that is in none."""
    return "|".join(graph.partition(":")[0] for graph in _graphs(config))


def _graphs(config: RunnableConfig) -> list[str]:
    """The nodes that the running graph is in, the outermost first; those of a state that begins anew have a number."""
    return str(config.get("configurable", {}).get("checkpoint_ns") or "").split("|")[:-1]


def _kept_in_thread(config: RunnableConfig) -> list[str] | None:
    """Ids of all messages that a checkpointer keeps of the thread; None: it keeps none, or some have been summed up."""
    if not is_kept(config):
        return None
    read = config.get("configurable", {}).get(READ)
    try:
        messages: Any = read("messages") if callable(read) else None
    except (KeyError, TypeError, ValueError):  # a graph with another state
        return None
    if not isinstance(messages, list):
        return None
    said = [one for one in cast("list[Any]", messages) if isinstance(one, BaseMessage)]
    return None if any(map(is_summary, said)) else [str(one.id) for one in said if one.id]


def as_mapping(context: Any) -> Mapping[str, Any]:
    """The names that the context of a graph gives to memory and user."""
    if isinstance(context, Mapping):
        return context
    names = ("memory_key", "user_id", *CONVERSATION_NAMES)
    return {name: value for name in names if (value := getattr(context, name, None)) is not None}


def _first(places: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """The first value that one of the places has under one of the names."""
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)
