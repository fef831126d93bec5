"""All error classes of M+; ``except mplus.MPlusError`` catches every one.

    MPlusError
    ├── ModelNotFoundError      no model under that name, and none could be fetched
    ├── DownloadError           a pull failed: no network, disk full, or altered bytes
    ├── CheckpointError         weights are missing, have the wrong shape, or would be dropped
    ├── UnsupportedModelError   a backbone whose layers M+ cannot read or write
    ├── PromptTooLongError      the prompt and its memory do not fit the model's window
    ├── MemoryMismatchError     a memory made by another model, another memory layout or another embedder
    ├── EmbedderError           the user's embedder failed, or returned no usable vectors
    ├── LedgerMissingError      a memory was to be rebuilt, but keeps no ledger
    ├── MemoryLimitError        a memory or its store would exceed a limit that the user set
    ├── MemoryLockedError       another process or thread holds the memory
    ├── MemoryConflictError     another writer saved the same memory at the same time
    ├── MemoryNotFoundError     no saved memory at that path or under that name
    ├── MemorySaveError         a memory could not be saved; an earlier save is intact
    ├── MemoryReadError         a saved memory could not be reached or fetched; it may be intact
    ├── MemoryKeyError          an encrypted memory, and the key is missing or wrong
    ├── QueueFullError          a scheduler's queue is full
    ├── SchedulerClosedError    a scheduler that takes no more requests
    ├── UnknownNameError        a setting or argument that does not exist; the message names the nearest one
    └── CorruptMemoryError      a saved memory that is truncated, altered or of a newer format

A bad argument raises ``ValueError``. Each message names the value received, what was expected and the
fix; a failed operation leaves every memory unchanged.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from difflib import get_close_matches


class MPlusError(Exception):
    """Base class of all errors of M+."""


class ModelNotFoundError(MPlusError):
    """No model under that name, and none could be fetched."""


class DownloadError(MPlusError):
    """Fetching a model failed: no network, a full disk, or bytes that do not match their checksum."""


class CheckpointError(MPlusError):
    """Weights are missing, have the wrong shape, or would be silently dropped."""


class UnsupportedModelError(MPlusError):
    """Memory would not be exact with this backbone; the message has the difference found."""


class PromptTooLongError(MPlusError, ValueError):
    """The prompt, what memory puts before it and the answer do not fit the model's window."""


class MemoryMismatchError(MPlusError, ValueError):
    """The memory was made by another model, with another memory layout or with another embedder."""


class EmbedderError(MPlusError):
    """The embedder that the user brought failed, or did not return one finite vector for each text."""


class LedgerMissingError(MPlusError):
    """The memory keeps no ledger of its writes, so they cannot be written again."""


class MemoryLimitError(MPlusError):
    """A memory or its store would exceed a limit that the user set."""


class MemoryLockedError(MPlusError):
    """Another process or thread holds the memory."""


class MemoryConflictError(MPlusError):
    """Another writer saved the same memory at the same time; what it saved is intact."""


class MemoryNotFoundError(MPlusError):
    """There is no saved memory at that path or under that name."""


class MemorySaveError(MPlusError, OSError):
    """A memory could not be saved; an earlier save is intact."""


class MemoryReadError(MPlusError, OSError):
    """A saved memory could not be reached or fetched; it may be intact."""


class MemoryKeyError(MPlusError):
    """A saved memory is encrypted, and the key is missing, destroyed or wrong."""


class CorruptMemoryError(MPlusError):
    """A saved memory is truncated, altered or of a format this version cannot read.

    Args:
        problem: What is wrong.
        place: The path or url of the damage; None if only a caller knows it.
    """

    def __init__(self, problem: str, place: object = None) -> None:
        super().__init__(problem if place is None else f"{place}: {problem}")
        self.place = None if place is None else str(place)


@contextmanager
def damage_in(place: object) -> Generator[None]:
    """Errors of corrupt data in this block name ``place``, unless they name a place already."""
    try:
        yield
    except CorruptMemoryError as error:
        if error.place is not None:
            raise
        raise CorruptMemoryError(f"{error}. Restore it from a copy.", place) from error


class QueueFullError(MPlusError):
    """A scheduler has ``max_waiting`` requests in its queue already."""


class SchedulerClosedError(MPlusError):
    """A scheduler that takes no more requests."""


class UnknownNameError(MPlusError, ValueError):
    """A setting or argument that does not exist."""

    @classmethod
    def check(
        cls, given: Iterable[str], known: Iterable[str], *, of: str, instead: Mapping[str, str] | None = None
    ) -> None:
        """Raise the error if a name does not exist.

        Args:
            given: The names that were used.
            known: The names that exist.
            of: What takes the names, for the message.
            instead: What to write instead of names that other libraries use; a bare name that does not exist here
                either is left out.

        Raises:
            UnknownNameError: A name does not exist. The message has the nearest name and all that exist.
        """
        known = sorted(known)
        unknown = next((name for name in given if name not in known), None)
        if unknown is None:
            return
        nearest = (instead or {}).get(unknown)
        if nearest is None or (nearest.isidentifier() and nearest not in known):
            nearest = next(iter(get_close_matches(unknown, known, n=1)), None)
        hint = "" if nearest is None else f" Use {nearest}."
        takes = f"It takes: {', '.join(known)}." if known else "It takes nothing here."
        raise cls(f"{of} does not take {unknown!r}.{hint} {takes}")
