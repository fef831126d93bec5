"""Names of memories that are safe as folder names on any file system, and names of the files of a save."""

import hashlib
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

from mplus.errors import CorruptMemoryError
from mplus.ids import Id, id_text
from mplus.storage.folder import Folder

NAME = re.compile(r"[^\W_][\w.@+-]{0,127}")
RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
MAX_NAME_BYTES = 200
ESCAPED = "id+"
"""What the name of a memory begins with if it stands for an id that is no name."""
HASHED = "id++h"
"""What it begins with if it stands for an id that is too long; an escaped one never has "+h"."""
MAX_ESCAPED = 128
MAX_ID_BYTES = 2**20
"""Most bytes of an id that are read; a longer one is listed by its name."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_@-]+")
MANIFEST = "memory.json"
MAX_FILES = 2**18
"""Largest number of files beside a manifest."""
_FILE = re.compile(r"(tokens|vectors|state|records)-[0-9a-f]{32}\.(safetensors|sealed|jsonl)")


def is_own_file(name: str) -> bool:
    """Whether a file of that name beside a manifest was made by saving a memory; other files are left alone."""
    return _FILE.fullmatch(name) is not None


def check_name(name: object, argument: str = "Memory name ") -> str:
    """The name, if it is allowed.

    Args:
        name: The name to check.
        argument: The argument that the error message names.

    Raises:
        ValueError: The name is not a string, could lead out of its folder, is too long, or means another file on some
            file system.
    """
    if not isinstance(name, str):
        raise ValueError(f"{argument}{name!r:.60} is {type(name).__name__}: expected a string.")
    fits = NAME.fullmatch(name) and ".." not in name and not name.endswith(".")
    # Two Unicode forms of one letter name the same file on some systems and two files on others.
    fits = fits and unicodedata.normalize("NFC", name) == name and len(name.encode()) <= MAX_NAME_BYTES
    # "com¹" is a device of Windows as "com1" is.
    if not fits or unicodedata.normalize("NFKC", name.partition(".")[0]).lower() in RESERVED:
        raise ValueError(
            f"{argument}{name[:40]!r} ({len(name)} characters): expected 1 to 128 letters, digits, or any of "
            "'. _ @ + -', beginning with a letter or digit, no '..', no '.' at the end, no device name such as 'con'."
        )
    return name


def name_for(id: Id) -> str:
    """The name of a memory for an id that somebody else chose, such as "telegram:12345" or "auth0|x".

    An id that is a name already stays as it is. Any other is escaped, so that ``id_of`` finds it again; a very long one
    is hashed. Numbers and UUIDs count as their text.

    Raises:
        ValueError: The id is empty, only spaces, or of another type.
    """
    id = id_text(id, "id")
    if not id.strip():
        raise ValueError(f"id {id!r:.40}: expected at least one character that is no space.")
    if not id.startswith(ESCAPED):
        try:
            return check_name(id)
        except ValueError:
            pass
    found = ESCAPED + _UNSAFE.sub(lambda part: "".join(f"+{byte:02X}" for byte in _as_bytes(part[0])), id)
    if len(found) <= MAX_ESCAPED:
        return check_name(found)
    return f"{HASHED}{hashlib.sha256(_as_bytes(id)).hexdigest()}"


def id_of(name: str) -> str:
    """The id for which ``name_for`` gave this name; the name itself if that was hashed, or no such name."""
    if not name.startswith(ESCAPED) or name.startswith(HASHED):
        return name
    parts = re.split(r"((?:\+[0-9A-F]{2})+)", name.removeprefix(ESCAPED))
    found = "".join(
        bytes.fromhex(part.replace("+", "")).decode("utf-8", "surrogatepass") if part.startswith("+") else part
        for part in parts
    )
    return found if name_for(found) == name else name


def note_id(root: Path, name: str, id: Id) -> None:
    """Keep the id of a memory beside it, if its name does not tell it.

    Raises:
        OSError: It cannot be written.
    """
    id = id_text(id, "id")
    if not name.startswith(HASHED) or name_for(id) != name or noted_id(root, name) == id:
        return
    place = Folder(root)
    place.exchange(_note(root, name).name, _as_bytes(id))
    place.sync()


def _note(root: Path, name: str) -> Path:
    return root / f".{name}.id"


def forget_id(root: Path, name: str) -> None:
    """Remove what ``note_id`` has kept."""
    if not (note := _note(root, name)).is_dir():
        note.unlink(missing_ok=True)


def noted_id(root: Path, name: str) -> str:
    """The id of a memory: what its name tells, else what ``note_id`` has kept; the name itself if neither is there."""
    if name.startswith(HASHED):
        with (
            suppress(OSError, UnicodeDecodeError, CorruptMemoryError),
            Folder(root).open(_note(root, name).name) as file,
        ):
            found = file.read(MAX_ID_BYTES).decode("utf-8", "surrogatepass")
            return found if found.strip() and name_for(found) == name else name
    return id_of(name)


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def check_spelling(path: Path) -> None:
    """Refuse a name that differs from an existing one only in capitals: on some file systems both are one folder.

    Raises:
        ValueError: There is a memory whose name differs only in capitals.
    """
    other = path.with_name(path.name.swapcase())
    if other.name == path.name or not path.exists() or not other.exists() or not path.samefile(other):
        return
    spellings = [entry.name for entry in path.parent.iterdir() if entry.name.casefold() == path.name.casefold()]
    if path.name not in spellings:
        raise ValueError(f"Memory name {path.name!r}: this file system takes it for {spellings[0]!r}. Choose another.")
