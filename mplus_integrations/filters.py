"""Filters as LlamaIndex describes them, in the one language of filters (``mplus.metadata_filter``)."""

from collections.abc import Sequence
from typing import Any, Protocol

OPERATORS = {
    "==": "$eq",
    "!=": "$ne",
    ">": "$gt",
    ">=": "$gte",
    "<": "$lt",
    "<=": "$lte",
    "in": "$in",
    "nin": "$nin",
    "all": "$all",
    "contains": "$contains",
    "text_match": "$contains",
    "text_match_insensitive": "$icontains",
}


class Filters(Protocol):
    """The part of LlamaIndex's ``MetadataFilters`` that is read."""

    @property
    def filters(self) -> Sequence[Any]:
        """Conditions, and filters in filters."""
        ...

    @property
    def condition(self) -> Any:
        """How they are joined."""
        ...


def of_metadata_filters(filters: Filters) -> dict[str, Any]:
    """LlamaIndex's filters, nested ones too, as a filter of metadata.

    Raises:
        ValueError: A condition or an operator is unknown.
    """
    parts = [of_metadata_filters(one) if hasattr(one, "filters") else _of_one(one) for one in filters.filters]
    if not parts:
        return {}
    join = filters.condition
    name = "and" if join is None else str(getattr(join, "value", join)).lower()
    if name not in ("and", "or", "not"):
        raise ValueError(f"condition={join!r}: expected 'and', 'or' or 'not'.")
    return {f"${name}": parts}


def _of_one(one: Any) -> dict[str, Any]:
    operator = str(getattr(one.operator, "value", one.operator))
    if operator == "is_empty":
        return {one.key: {"$empty": True}}
    if operator == "any":
        return (
            {"$or": [{one.key: {"$contains": value}} for value in one.value]} if one.value else {one.key: {"$in": []}}
        )
    if operator not in OPERATORS:
        raise ValueError(
            f"operator={operator!r} of {one.key!r}: expected one of {', '.join(OPERATORS)}, any, is_empty."
        )
    return {one.key: {OPERATORS[operator]: one.value}}
