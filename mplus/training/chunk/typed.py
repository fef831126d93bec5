"""Questions as other people type them."""

import random


def typed(rng: random.Random, text: str) -> str:
    """A question as somebody else might type it: without capitals, without its mark, with a slip."""
    style = rng.random()
    if style < 0.6:
        return text
    if style < 0.75:
        return text[:1].upper() + text[1:].rstrip("?. ") + "?"
    if style < 0.9:
        return text.lower().rstrip("?. ")
    place = rng.randrange(max(len(text) - 1, 1))
    return text[:place] + text[place + 1 : place + 2] + text[place] + text[place + 2 :]
