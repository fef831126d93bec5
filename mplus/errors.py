"""Every error M+ raises on purpose, so that one ``except mplus.MPlusError`` catches them all.

    MPlusError
    ├── ModelNotFoundError      no model under that name, and none could be fetched
    ├── DownloadError           a pull failed: no network, disk full, or altered bytes
    ├── CheckpointError         weights are missing, have the wrong shape, or would be dropped
    ├── UnsupportedModelError   a backbone whose layers M+ cannot read or write
    ├── PromptTooLongError      the prompt and its memory do not fit the model's window
    ├── MemoryMismatchError     a memory made by another model or another memory layout
    ├── LedgerMissingError      a memory that was to be rebuilt, but what was written was not kept
    ├── MemoryLimitError        a memory or its store would outgrow a limit the user set
    ├── MemoryLockedError       another process or thread holds the memory
    ├── MemoryNotFoundError     no saved memory at that path or under that name
    ├── MemorySaveError         a memory could not be brought to disk; what was saved before is intact
    ├── MemoryReadError         a saved memory could not be reached or fetched; it may well be intact
    ├── MemoryKeyError          an encrypted memory, and no key or another one
    ├── QueueFullError          a scheduler has as many requests waiting as it may have
    ├── SchedulerClosedError    a scheduler that takes no more requests
    ├── UnknownNameError        a setting or argument that does not exist; the message names the nearest one
    └── CorruptMemoryError      a saved memory that is truncated, altered or of a newer format

A bad argument raises ``ValueError``. Each message names the value received, what was expected and the
fix; a failed operation leaves every memory as it was.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches


class MPlusError(Exception):
    """Base of every error that M+ raises on purpose."""


class ModelNotFoundError(MPlusError):
    """No model under that name, and none could be fetched."""


class DownloadError(MPlusError):
    """Fetching a model failed: no network, a full disk, or bytes that do not match their checksum."""


class CheckpointError(MPlusError):
    """Weights are missing, have the wrong shape, or would be silently dropped."""


class UnsupportedModelError(MPlusError):
    """The backbone is not a full-attention, rotary, decoder-only model."""


class PromptTooLongError(MPlusError, ValueError):
    """The prompt, what memory puts before it and the answer do not fit the model's window."""


class MemoryMismatchError(MPlusError, ValueError):
    """The memory was made by another model or with another memory layout."""


class LedgerMissingError(MPlusError):
    """What was written into a memory was not kept, so that it cannot be written again."""


class MemoryLimitError(MPlusError):
    """A memory or its store would outgrow a limit that the user set."""


class MemoryLockedError(MPlusError):
    """Another process or thread holds the memory."""


class MemoryNotFoundError(MPlusError):
    """There is no saved memory at that path or under that name."""


class MemorySaveError(MPlusError, OSError):
    """A memory could not be brought to disk; what was saved before is intact."""


class MemoryReadError(MPlusError, OSError):
    """A saved memory could not be reached or fetched; it may well be intact."""


class MemoryKeyError(MPlusError):
    """A saved memory is encrypted, and the key is missing, destroyed or another one."""


class CorruptMemoryError(MPlusError):
    """A saved memory is truncated, altered or of a format this version cannot read.

    Args:
        problem: What is wrong.
        place: The path or url that it is wrong in; None where only a caller knows.
    """

    def __init__(self, problem: str, place: object = None) -> None:
        super().__init__(problem if place is None else f"{place}: {problem}")
        self.place = None if place is None else str(place)


@contextmanager
def damage_in(place: object) -> Generator[None]:
    """Whatever turns out to be corrupt in this block lies in ``place``, unless it is known more exactly."""
    try:
        yield
    except CorruptMemoryError as error:
        if error.place is not None:
            raise
        raise CorruptMemoryError(f"{error}. Restore it from a copy.", place) from error


class QueueFullError(MPlusError):
    """A scheduler has as many requests waiting as it may have."""


class SchedulerClosedError(MPlusError):
    """A scheduler that takes no more requests."""


class UnknownNameError(MPlusError, ValueError):
    """A setting or argument that does not exist."""

    @classmethod
    def check(
        cls, given: Iterable[str], known: Iterable[str], *, of: str, instead: Mapping[str, str] | None = None
    ) -> None:
        """Refuse names that do not exist.

        Args:
            given: The names that were used.
            known: The names that exist.
            of: What takes them, for the message.
            instead: What to write instead of names that other libraries use.

        Raises:
            UnknownNameError: For the first name that does not exist. It tells the nearest one, and all that exist.
        """
        known = sorted(known)
        unknown = next((name for name in given if name not in known), None)
        if unknown is None:
            return
        nearest = (instead or {}).get(unknown) or next(iter(get_close_matches(unknown, known, n=1)), None)
        hint = "" if nearest is None else f" Use {nearest}."
        raise cls(f"{of} does not take {unknown!r}.{hint} It takes: {', '.join(known)}.")
