"""Names of memories, such that none leaves its folder on any file system, and of the files that they are kept in."""

import re
import unicodedata
from pathlib import Path

NAME = re.compile(r"[^\W_][\w.@+-]{0,127}")
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
MAX_NAME_BYTES = 200
MANIFEST = "memory.json"
_FILE = re.compile(r"(tokens|state|records)-[0-9a-f]{32}\.(safetensors|sealed|jsonl)")


def is_own_file(name: str) -> bool:
    """Whether a file of that name, beside a manifest, can only be one that saving a memory made."""
    return _FILE.fullmatch(name) is not None


def check_name(name: object, argument: str = "Memory name ") -> str:
    """The name itself, if it is one.

    Args:
        name: What is to be a name.
        argument: How the message calls it.

    Raises:
        ValueError: No string, or a name that could leave its folder, is too long, or means another file on some
            system.
    """
    if not isinstance(name, str):
        raise ValueError(f"{argument}{name!r:.60} is {type(name).__name__}: expected a string.")
    fits = NAME.fullmatch(name) and ".." not in name and not name.endswith(".")
    # Two ways to write one letter are one file on some systems and two on others.
    fits = fits and unicodedata.normalize("NFC", name) == name and len(name.encode()) <= MAX_NAME_BYTES
    if not fits or name.partition(".")[0].lower() in RESERVED:
        raise ValueError(
            f"{argument}{name[:60]!r} ({len(name)} characters): expected 1 to 128 letters, digits, or any of "
            "'. _ @ + -', beginning with a letter or digit, no '..', no '.' at the end, no device name such as 'con'."
        )
    return name


def check_spelling(path: Path) -> None:
    """Where capitals do not count, nobody gets the memory of another whose name differs by them.

    Raises:
        ValueError: There is a memory whose name differs only in capitals.
    """
    other = path.with_name(path.name.swapcase())
    if other.name == path.name or not path.exists() or not other.exists() or not path.samefile(other):
        return
    spellings = [entry.name for entry in path.parent.iterdir() if entry.name.casefold() == path.name.casefold()]
    if path.name not in spellings:
        raise ValueError(f"Memory name {path.name!r}: this file system takes it for {spellings[0]!r}. Choose another.")
