"""Texts with slots, filled in: {NAME1} is a value as it stands, {name1} in lower case, {Name1} with a capital."""

import re
from collections.abc import Mapping

REFERENCE = re.compile(r"\{([A-Za-z]+[0-9]+)\}")
_THE = re.compile(r"\b([Tt]he|THE)\s\{([A-Za-z]+[0-9]+)\}")
_ARTICLE = re.compile(r"\b([Aa])n?(\s)\{([A-Za-z]+[0-9]+)\}")


def filled(text: str, values: Mapping[str, str], *, lowercase: bool = False) -> str:
    """A text with the values of its slots, and the articles before them as they need.

    Args:
        text: With slots.
        values: By name of the slot, in capitals.
        lowercase: Whether whoever speaks uses no capitals.

    Raises:
        KeyError: The text names a slot that has no value.
    """
    value = lambda name: _cased(values[name.upper()], name, lowercase)
    article = lambda found: found[1] + "n" * _wants_an(value(found[3])) + found[2] + value(found[3])
    the = lambda found: found[1] + " " + re.sub(r"^(the|an?) ", "", value(found[2]), flags=re.IGNORECASE)
    return REFERENCE.sub(lambda found: value(found[1]), _ARTICLE.sub(article, _THE.sub(the, text)))


def _cased(value: str, name: str, lowercase: bool) -> str:
    """A value in the case that a reference asks for."""
    if name.islower() or lowercase:
        return value.lower()
    return value if name.isupper() else value[0].upper() + value[1:]


def _wants_an(value: str) -> bool:
    """Whether "an" stands before a value, by its sound as far as spelling tells."""
    lower = value.lower()
    if lower[0].isdigit():
        return lower.startswith("8") or re.match(r"1[18](?!\d)", lower) is not None
    return lower[0] in "aeiou" and not lower.startswith(("uni", "use", "eu", "one", "uk", "ut", "ur"))
