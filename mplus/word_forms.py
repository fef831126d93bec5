"""Forms of an English word: a question says "moored" where the text says "moor", "moors" or "mooring"."""

_ENDINGS = (
    ("ies", "y"),
    ("ied", "y"),
    ("es", ""),
    ("s", ""),
    ("ed", ""),
    ("ed", "e"),
    ("ing", ""),
    ("ing", "e"),
    ("er", ""),
    ("er", "e"),
    ("ly", ""),
)
"""Endings, and what stands in their place in the stem."""
_SHORTEST = 3
"""Fewest letters of a word that has forms, and of a stem."""
_NEVER_DOUBLED = "aeiouwy"


def forms_of(word: str) -> set[str]:
    """The word itself and every form that common endings give it; most of them are no words and do no harm.

    Rules stand in for a dictionary, so irregular forms ("went") are missing. Words of other languages get forms that
    nobody writes. What is not all letters is its only form.
    """
    if len(word) < _SHORTEST or not word.isalpha():
        return {word}
    stems = {word}
    for ending, instead in _ENDINGS:
        if not word.endswith(ending) or len(word) - len(ending) < _SHORTEST:
            continue
        stem = word.removesuffix(ending) + instead
        stems.add(stem)
        if not instead and len(stem) > _SHORTEST and stem[-1] == stem[-2]:
            stems.add(stem[:-1])
    return stems.union(*map(_derived, stems))


def _derived(stem: str) -> set[str]:
    found = {stem + ending for ending in ("s", "es", "ed", "ing", "ly", "er")}
    if stem.endswith("e"):
        found |= {stem + "d", stem + "r", stem[:-1] + "ing"}
    if stem.endswith("y"):
        found |= {stem[:-1] + "ies", stem[:-1] + "ied"}
    if stem[-1] not in _NEVER_DOUBLED:
        found |= {stem + stem[-1] + "ed", stem + stem[-1] + "ing"}
    return found
