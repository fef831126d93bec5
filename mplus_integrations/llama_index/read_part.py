"""Which part of a memory one call reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from mplus import Memory, MPlus
from mplus_integrations.history import Where


def chosen(where: Any) -> Where | None:
    """A choice of sources as a test of name and metadata."""
    if where is None:
        return None
    if callable(where):
        return lambda name, metadata: bool(where(name, metadata))
    wanted, missing = dict(where), object()
    return lambda _, metadata: all(metadata.get(key, missing) == value for key, value in wanted.items())


def without_repetition(
    model: MPlus, memory: Memory, asked: str | list[dict[str, Any]], wheres: Sequence[Where | None]
) -> tuple[Memory, str | list[dict[str, Any]], Where | None]:
    """What to read: turns that stand in the prompt are not read as memory too."""
    tests = [where for where in wheres if where is not None]
    if isinstance(asked, list):
        here = {message["source"] for message in asked if "source" in message}
        asked = [{key: value for key, value in message.items() if key != "source"} for message in asked]
        if here:
            tests.append(lambda name, _: name not in here)
    if not tests:
        return memory, asked, None

    def where(name: str, metadata: Mapping[str, Any]) -> bool:
        return all(test(name, metadata) for test in tests)

    if not any(where(source.name, source.metadata) for source in memory.sources()):
        return model.new_memory(config=memory.config), asked, None  # exactly the backbone
    return memory, asked, where
