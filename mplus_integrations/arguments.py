"""Checks of arguments, the same in both frameworks: an error has the value, what was expected, and the fix."""

import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any, TypeVar

from mplus.given import path_of

Item = TypeVar("Item")


def checked_count(number: object, name: str) -> int:
    """How many things to find.

    Raises:
        ValueError: It is no whole number, or below 1.
    """
    if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
        raise ValueError(f"{name}={number!r:.40}: expected at least 1, as a whole number.")
    return int(number)


def checked_switch(given: object, name: str) -> bool:
    """True or False. Another value, such as the text "no", would count as True.

    Raises:
        ValueError: It is neither.
    """
    if not isinstance(given, bool):
        raise ValueError(f"{name}={given!r:.40}: expected True or False.")
    return given


def checked_text(given: object, name: str) -> str:
    """A text.

    Raises:
        ValueError: It is of another type.
    """
    if not isinstance(given, str):
        raise ValueError(f"{name}={given!r:.40} is {type(given).__name__}: expected text.")
    return given


def checked_id(given: object, name: str) -> str:
    """The id of something as LlamaIndex has them.

    Raises:
        ValueError: It is no text, or empty.
    """
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{name}={given!r:.40} is {type(given).__name__}: expected text, with a visible character.")
    return given


def checked_folder(given: object, name: str) -> str:
    """A folder as text.

    Raises:
        ValueError: It is neither text nor a path, or empty, or a url, of which a folder would be made here.
    """
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{name}={given!r:.40} is {type(given).__name__}: expected a folder, as text or a Path.")
    path_of(name, given, instead="Latents are saved on local disks; behind a url a mplus.UrlStore keeps memories.")
    return path


def checked_several(given: Any, name: str, kind: type[Item] | None = None) -> list[Item]:
    """Several things as a list. A single text is none of it, since its letters would be taken for several.

    Args:
        given: What should be several things.
        name: The argument's name.
        kind: The type of each; None: any.

    Raises:
        ValueError: It is a text or a mapping, cannot be gone through, or has a thing of another type.
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{name}={given!r:.40} is {type(given).__name__}: expected a list; put a single one in [].")
    found: list[Any] = list(given)
    if kind is not None and (wrong := [one for one in found if not isinstance(one, kind)]):
        raise ValueError(
            f"{name} has {wrong[0]!r:.40} ({type(wrong[0]).__name__}) in it: expected a list of {kind.__name__} only."
        )
    return found


def checked_once(items: Iterable[tuple[str, Item]], name: str, same: Callable[[Item, Item], bool]) -> dict[str, Item]:
    """Items by name. One that comes twice is taken once.

    Raises:
        ValueError: A name stands for two items that are not the same, of which one would be lost.
    """
    found: dict[str, Item] = {}
    for one, item in items:
        if one in found and not same(found[one], item):
            raise ValueError(
                f"{name} has {one!r:.60} twice, with different contents: expected a name for each of them."
            )
        found[one] = item
    return found
