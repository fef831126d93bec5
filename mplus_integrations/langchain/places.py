"""Places in a LangGraph store: a namespace and a key, checked before anything is looked up or changed."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from langgraph.store.base import BaseStore, Item, SearchItem

from mplus_integrations.sources import checked_name

Namespace = tuple[str, ...]


class KnownPlaces(BaseStore):
    """A store that refuses what is no namespace or key; LangGraph takes ``None`` for a key that is called "None"."""

    def get(self, namespace: Namespace, key: str, **options: Any) -> Item | None:
        """The item of a key."""
        return super().get(checked_namespace(namespace), checked_name(key, "key"), **options)

    async def aget(self, namespace: Namespace, key: str, **options: Any) -> Item | None:
        """``get`` without blocking the event loop."""
        return await super().aget(checked_namespace(namespace), checked_name(key, "key"), **options)

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        **options: Any,
    ) -> None:
        """Write an item in place of the one that the key had."""
        super().put(checked_namespace(namespace), checked_name(key, "key"), value, index, **options)

    async def aput(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Literal[False] | list[str] | None = None,
        **options: Any,
    ) -> None:
        """``put`` without blocking the event loop."""
        await super().aput(checked_namespace(namespace), checked_name(key, "key"), value, index, **options)

    def delete(self, namespace: Namespace, key: str) -> None:
        """Forget the item of a key."""
        super().delete(checked_namespace(namespace), checked_name(key, "key"))

    async def adelete(self, namespace: Namespace, key: str) -> None:
        """``delete`` without blocking the event loop."""
        await super().adelete(checked_namespace(namespace), checked_name(key, "key"))

    def search(self, namespace_prefix: Namespace, /, **options: Any) -> list[SearchItem]:
        """The items under a namespace that fit a query and a filter."""
        return super().search(checked_namespace(namespace_prefix, "namespace_prefix"), **options)

    async def asearch(self, namespace_prefix: Namespace, /, **options: Any) -> list[SearchItem]:
        """``search`` without blocking the event loop."""
        return await super().asearch(checked_namespace(namespace_prefix, "namespace_prefix"), **options)


def checked_namespace(given: Namespace, name: str = "namespace") -> Namespace:
    """A namespace.

    Raises:
        ValueError: It is a single text, or a label is none.
    """
    labels: Any = given
    if not isinstance(labels, tuple | list) or not all(isinstance(one, str) for one in cast("list[Any]", labels)):
        raise ValueError(f"{name}={given!r:.60}: expected a tuple of labels, such as ('users', 'anna').")
    return tuple(cast("list[str]", labels))
