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
        ValueError: They are something else, a condition or an operator is unknown, or a value is of the wrong kind.
    """
    if not hasattr(filters, "filters") or not hasattr(filters, "condition"):
        raise ValueError(
            f"filters={filters!r:.60} is {type(filters).__name__}: expected MetadataFilters. "
            "MetadataFilters.from_dict({'key': 'value'}) makes them of values that must be equal."
        )
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
        if not isinstance(one.value, list | tuple):
            raise ValueError(f"value={one.value!r:.40} of {one.key!r}: operator 'any' expects a list of values.")
        return (
            {"$or": [{one.key: {"$contains": value}} for value in one.value]} if one.value else {one.key: {"$in": []}}
        )
    if operator not in OPERATORS:
        raise ValueError(
            f"operator={operator!r} of {one.key!r}: expected one of {', '.join(OPERATORS)}, any, is_empty."
        )
    if operator.startswith("text_match") and not isinstance(one.value, str):
        raise ValueError(f"value={one.value!r:.40} of {one.key!r}: operator {operator!r} expects text.")
    return {one.key: {OPERATORS[operator]: one.value}}
