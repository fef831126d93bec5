"""Who asks, and which memories a request may open."""

import hashlib
from collections.abc import Mapping, Sequence

from mplus import MemoryStore
from mplus_integrations.server.keys import Caller, KeyRing, own_memory
from mplus_integrations.server.problems import HIDDEN, RETRY_SECONDS, Problem
from mplus_integrations.server.settings import ServeSettings

MEMORY_HEADER = "x-mplus-memory"
ANYONE = "default"
"""The memory of requests that name none and have no key."""


class Access:
    """Finds the caller of a request by its key.

    Args:
        settings: Whether keys are needed, where they are, and what is shared.

    Raises:
        ValueError: The file of keys is damaged.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._needs_key = settings.needs_key
        self._ring = None if settings.keys is None else KeyRing(settings.keys)
        if self._ring is not None:
            self._ring.list()
        self._shared = frozenset(settings.shared)

    def caller(self, headers: Mapping[str, str], address: str) -> Caller:
        """Who asks.

        Args:
            headers: Of the request, by lower-case name.
            address: The network address that it comes from.

        Raises:
            Problem: A key is needed and missing, or is not known (401), or the file of keys is damaged (503).
        """
        key = _key_in(headers)
        if key is None:
            if self._needs_key:
                raise Problem(401, "key_missing", "This server needs an API key: 'Authorization: Bearer …'.")
            return Caller(f"from {_hidden(address)}", ANYONE, None, self._shared)
        if self._ring is None:
            own = own_memory(key)
            return Caller(own[:16], own, frozenset({own}) if self._needs_key else None, self._shared)
        try:
            known = self._ring.find(key)
        except (ValueError, OSError) as error:
            raise Problem(503, "keys_unreadable", HIDDEN["keys_unreadable"], retry_after=RETRY_SECONDS) from error
        if known is None:
            raise Problem(401, "key_unknown", "This API key is not known here. mplus keys add makes one.")
        opens = None if known.opens is None else frozenset({known.memory, *known.opens})
        return Caller(known.id, known.memory, opens, self._shared)


def memory_for(caller: Caller, named: str | None, headers: Mapping[str, str]) -> str:
    """The memory that a request means: the one it names, else its header's, else its key's.

    Raises:
        ValueError: The name is not allowed.
        Problem: The caller may not open it (403).
    """
    given = headers.get(MEMORY_HEADER)
    header = None if given is None else _as_meant(given)
    if named is not None and header is not None and named != header:
        raise ValueError(f"memory={named!r} beside {MEMORY_HEADER}: {header!r}: expected one of them.")
    return may_open(caller, named if named is not None else header if header is not None else caller.memory)


def may_open(caller: Caller, name: str) -> str:
    """The name of a memory that the caller may read and write.

    Raises:
        ValueError: The name is not allowed.
        Problem: The caller may not open it (403).
    """
    MemoryStore.check_name(name, "memory=")
    if not caller.opens(name):
        raise Problem(403, "memory_forbidden", f"This API key does not open the memory {name!r}.")
    return name


def may_read(caller: Caller, names: Sequence[str], field: str = "shared") -> list[str]:
    """The names of memories that the caller may read.

    Args:
        caller: Who asks.
        names: The names.
        field: What they are given as, for messages.

    Raises:
        ValueError: A name is not allowed.
        Problem: The caller may not read one of them (403).
    """
    for name in names:
        MemoryStore.check_name(name, f"{field}=")
        if not caller.reads(name):
            raise Problem(403, "memory_forbidden", f"This API key does not read the memory {name!r}.")
    return list(dict.fromkeys(names))


def _key_in(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if not scheme:
        return None
    if scheme.lower() != "bearer" or not key.strip():
        raise Problem(401, "key_malformed", "Authorization: expected 'Bearer', a space and an API key.")
    return key.strip()


def _as_meant(header: str) -> str:
    """A header that was read as Latin-1, in which browsers send it; curl sends the terminal's UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _hidden(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:8]
