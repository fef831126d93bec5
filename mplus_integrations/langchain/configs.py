"""What the config of a call says about its memory and its conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import BaseCallbackManager, Callbacks
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config


def keyed(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call, with the name of its memory as ``asked_in`` finds it."""
    found = asked_in(config, kwargs)
    return {name: value for name, value in found.items() if name in kwargs or name == "memory_key"}


def asked_in(
    config: RunnableConfig | None,
    kwargs: dict[str, Any],
    callbacks: Callbacks = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of a call, with the names of its memory and of its conversation.

    For each, the first place that has one counts: the arguments, the config or that of the running graph or chain, the
    metadata. Each name of a conversation counts as any other, since chains, graphs and histories differ in theirs.
    """
    known = ensure_config(config)
    places: list[Mapping[str, Any]] = [known.get("configurable", {}), metadata or {}, known.get("metadata", {})]
    if isinstance(callbacks, BaseCallbackManager):
        places += [callbacks.metadata, callbacks.inheritable_metadata]
    steps = str(_first(places, ("checkpoint_ns",)) or "").split("|")
    conversation = _first(places, ("conversation_id", "thread_id", "session_id"))
    found = {
        "memory_key": _first(places, ("memory_key",)),
        "conversation_id": None if conversation is None else str(conversation),
        "conversation_part": "|".join(step.partition(":")[0] for step in steps) or None,
    }
    return {
        **kwargs,
        **{name: value for name, value in found.items() if value is not None and kwargs.get(name) is None},
    }


def _first(places: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """The first value that one of the places has under one of the names."""
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)
