"""Names of memories, checked before anything is opened."""

import re

NAME = re.compile(r"[^\W_][\w.@+-]{0,127}")
"""What ``MemoryStore`` takes as a name, so that a store can be added later."""


def checked_key(key: object) -> str | None:
    """A name for a memory, or None.

    Raises:
        ValueError: It could leave a folder, is too long, or holds odd characters.
    """
    if key is None:
        return None
    if not isinstance(key, str):
        raise ValueError(f"memory_key={key!r:.60} is {type(key).__name__}: expected a string.")
    if not NAME.fullmatch(key) or ".." in key:
        raise ValueError(
            f"memory_key={key[:60]!r} ({len(key)} characters): expected 1 to 128 letters, digits, or any of "
            "'. _ @ + -', beginning with a letter or digit."
        )
    return key
