"""Ids that others chose, as the names of sources and memories: text, numbers and UUIDs."""

from typing import Any
from uuid import UUID

Id = str | int | UUID
"""An id that counts as its text."""


def id_text(given: Any, argument: str) -> str:
    """An id as text; numbers and UUIDs count as what they are written as.

    Args:
        given: The id.
        argument: What the error message calls it.

    Raises:
        ValueError: It is of another type.
    """
    if isinstance(given, bool) or not isinstance(given, str | int | UUID):
        raise ValueError(f"{argument}={given!r:.60} is {type(given).__name__}: expected text, a number or a UUID.")
    return str.__str__(given) if isinstance(given, str) else str(given)
