"""The page at /: static files of this package. It has no way in but the API, with the key that its user types."""

import hashlib
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

PREFIX = "/page/"
"""Paths of its files; they need no key, since they tell nothing of any memory."""
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What a browser may load and run: these files alone, and no text as HTML."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFile(NamedTuple):
    """A file as it is sent: its bytes, their hash and their type."""

    data: bytes
    tag: str
    kind: str


def page_files() -> dict[str, PageFile]:
    """All files of the page by name."""
    found: dict[str, PageFile] = {}
    for path in files("mplus_integrations.server").joinpath("page").iterdir():
        kind = KINDS.get(path.name.rpartition(".")[2])
        if kind is not None:
            data = path.read_bytes()
            found[path.name] = PageFile(data, f'"{hashlib.sha256(data).hexdigest()[:32]}"', kind)
    return found


def page_routes() -> APIRouter:
    """The page and its files."""
    known, routes = page_files(), APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        """The page."""
        return _sent(known["index.html"], request)

    @routes.api_route(PREFIX + "{name}", methods=["GET", "HEAD"])
    async def part(name: str, request: Request) -> Response:
        """A file of the page."""
        if name not in known:
            raise HTTPException(404)
        return _sent(known[name], request)

    return routes


def _sent(file: PageFile, request: Request) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.kind, headers=headers)
