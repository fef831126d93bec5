"""Checks of what is given to a call: an error names the argument, what it was, and what was expected."""

import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

# One letter is a drive of Windows.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::.+)?://")
_URL_AS_PATH = re.compile(
    r"(abfss?|adl|az|azure|blockcache|dbfs|dropbox|file|filecache|ftp|gcs|gdrive|github|gs|hdfs|hf|https?|libarchive|"
    r"memory|oci|oss|r2|s3a?|sftp|simplecache|smb|ssh|tar|wasbs?|webdav|webhdfs|zip)(::.+)?:[/\\]"
    r"|[A-Z][A-Z0-9+.-]+(:[/\\].*)?(::[A-Z][A-Z0-9+.-]+)+:[/\\]",  # a chain, also of others
    re.IGNORECASE,
)
"""What ``Path``, which makes one slash of two, leaves of a url; any other folder may end in a colon."""


def refused(name: str, value: object, expected: str) -> ValueError:
    """The error for an argument that is not as expected."""
    return ValueError(f"{name}={value!r:.60} ({type(value).__name__}): expected {expected}.")


def check_kind(name: str, value: object, kind: type[Any], expected: str, *, optional: bool = False) -> None:
    """Check that an argument is of a kind.

    Raises:
        ValueError: It is not; None is only where it is ``optional``.
    """
    if not isinstance(value, kind) and not (optional and value is None):
        raise refused(name, value, expected)


def is_url(text: str) -> bool:
    """Whether a text is a url of a file or folder, not a path; "C://x" is a path."""
    return _URL.match(text) is not None


def path_of(name: str, value: Any, *, instead: str = "Name a folder or file of this machine.") -> Path:
    """A path, with the user's home folder written out.

    Args:
        name: The argument's name.
        value: What was given.
        instead: What to do where a url was given.

    Raises:
        ValueError: It is none, or empty, which would mean the present folder, or a url, of which folders would be made.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or text == "":
        raise refused(name, value, "a path")
    if "\0" in text:
        raise refused(name, value, "a path, which has no null character")
    if is_url(text) if isinstance(value, str) else _URL_AS_PATH.match(text):
        raise ValueError(f"{refused(name, value, 'a path on this machine, not a url')} {instead}")
    return Path(text).expanduser()


def _local_path(value: Any) -> Path:
    return path_of("path", value)


LocalPath = Annotated[Path, BeforeValidator(_local_path)]
"""A field of a path on this machine."""


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number, also one of numpy.

    Raises:
        ValueError: It is none, or below ``least``.
    """
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise refused(name, value, expected) from None
    if least is not None and found < least:
        raise refused(name, value, expected)
    return found


def no_switch(value: Any) -> Any:
    """A value that is to be a number, also one of numpy; True and False would count as 1 and 0.

    Raises:
        ValueError: It is True or False.
    """
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise ValueError(f"expected a number, not {value}")
    return value


NO_SWITCH = BeforeValidator(no_switch)
"""Stands last: bounds that stand after it would not get into the schema."""
Whole = Annotated[int, NO_SWITCH]
"""A field of a whole number; True is none."""
Number = Annotated[float, NO_SWITCH]
"""A field of a number; True is none."""


def check_number(name: str, value: Any, expected: str, *, optional: bool = False) -> None:
    """Check that an argument is a finite number, 0 or more, also one of numpy.

    Raises:
        ValueError: It is not; None is only where it is ``optional``.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise refused(name, value, expected)


def listed(name: str, value: Any) -> list[Any]:
    """The items of a list; a text is none, though it has letters.

    Raises:
        ValueError: It is no list.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | Mapping):
        raise refused(name, value, "a list")
    return list(value)  # pyright: ignore[reportUnknownArgumentType]
