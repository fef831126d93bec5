"""Which memory a request means, told before the request is passed on."""

import json
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote

from mplus_integrations.server.access import Access, memory_for

MEMORIES = "/v1/memories"
ASKS = frozenset({"/v1/chat/completions", "/v1/completions"})
MCP = "/mcp"


def names_it_in_body(method: str, path: str) -> bool:
    """Whether the body of a request may name its memory."""
    return method == "POST" and (path in ASKS or path == MEMORIES)


def meant_memory(
    access: Access, *, method: str, path: str, headers: Mapping[str, str], address: str, body: bytes
) -> str | None:
    """The memory that a request reads or writes; None: none, or the request is refused wherever it is passed.

    Args:
        access: Finds callers by their keys.
        method: The HTTP method, in capitals.
        path: The path, percent-encoded or not.
        headers: By lower-case name.
        address: The network address that it comes from.
        body: The body, where it may name the memory; else anything.
    """
    rest = path.removeprefix(MEMORIES + "/")
    if rest != path:
        return unquote(rest.partition("/")[0]) or None
    try:
        if path == MEMORIES:
            return _text(_object(body), "name") if method == "POST" else None
        if path in ASKS:
            return memory_for(access.caller(headers, address), _text(_object(body), "memory"), headers)
        if path == MCP:
            return memory_for(access.caller(headers, address), None, headers)
    except Exception:  # whoever answers the request says what is wrong with it
        return None
    return None


def _object(body: bytes) -> dict[str, Any]:
    found: Any = json.loads(body)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    return value if isinstance(value, str) else None
