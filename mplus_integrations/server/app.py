"""The web application: all endpoints over one service."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

import mplus
from mplus import MPlus
from mplus_integrations.server.door import Door
from mplus_integrations.server.keys import Caller
from mplus_integrations.server.logs import log, where_of
from mplus_integrations.server.memories_api import memory_routes
from mplus_integrations.server.memories_wire import AccessBody, ProblemBody
from mplus_integrations.server.metrics import CONTENT_TYPE
from mplus_integrations.server.openai_api import openai_routes
from mplus_integrations.server.page import page_routes
from mplus_integrations.server.problems import invalid, problem_of, response_of
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings
from mplus_integrations.worker import in_thread

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"description": about, "content": {"application/problem+json": {"schema": ProblemBody.model_json_schema()}}}
    for code, about in (("4XX", "The request cannot be answered."), ("5XX", "The server cannot answer now."))
}


def create_app(settings: ServeSettings, *, model: MPlus | None = None, service: Service | None = None) -> FastAPI:
    """The application.

    Args:
        settings: How to serve.
        model: A loaded model; None: the one that the settings name, which is loaded while the server is up already.
        service: A service of yours; None: one is made.
    """
    served = service or Service(settings, model=model)
    app = FastAPI(
        title="M+", version=mplus.__version__, lifespan=lambda _: _running(served, app), docs_url=None, redoc_url=None
    )
    app.state.service = served
    app.add_middleware(Door, service=served)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(RequestValidationError, _told)
    for routes in (openai_routes(served), memory_routes(served)):
        app.include_router(routes, responses=PROBLEMS)
    if settings.page:
        app.include_router(page_routes())
    _add_access(app, served)
    _add_health(app, served)
    _add_mcp(app, served)
    return app


def _add_access(app: FastAPI, service: Service) -> None:
    @app.get("/v1/access", tags=["access"], responses=PROBLEMS)
    async def access(request: Request) -> AccessBody:
        """What the key opens, and how the model is called."""
        caller: Caller = request.state.caller
        opens = None if caller.may_open is None else sorted(caller.may_open)
        return AccessBody(
            memory=caller.memory,
            opens=opens,
            reads=sorted(caller.may_read),
            needs_key=service.settings.needs_key,
            model=service.settings.model,
        )


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.head("/healthz", include_in_schema=False)
    @app.head("/readyz", include_in_schema=False)
    async def head(request: Request) -> Response:
        """The status of either, without a body."""
        return Response(status_code=200 if service.is_ready or request.url.path == "/healthz" else 503)

    @app.get("/readyz", tags=["health"], responses={503: {"description": "Not yet, or no more."}})
    async def readyz() -> JSONResponse:
        """Whether requests are answered: the model is loaded, and the server is not stopping."""
        return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)

    if service.settings.metrics:

        @app.get("/metrics", tags=["health"], response_class=Response)
        async def metrics() -> Response:
            """Prometheus metrics; they hold no names and no contents."""
            return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_mcp(app: FastAPI, service: Service) -> None:
    """MCP at /mcp, where its package is installed."""
    app.state.mcp = None
    if find_spec("mcp") is None:
        return
    from mplus_integrations.server.mcp_tools import mcp_app, mcp_server

    app.state.mcp = mcp_app(mcp_server(service))
    app.router.routes.extend(app.state.mcp.routes)


@asynccontextmanager
async def _running(service: Service, app: FastAPI) -> AsyncGenerator[None]:
    loading = asyncio.ensure_future(_load(service))
    async with AsyncExitStack() as stack:
        if app.state.mcp is not None:
            await stack.enter_async_context(app.state.mcp.router.lifespan_context(app.state.mcp))
        try:
            yield
        finally:
            service.stopping = True
            await loading
            await in_thread(service.close)
            log("stopped")


async def _load(service: Service) -> None:
    try:
        await in_thread(service.load)
    except Exception as error:  # the command tells it, and ends
        service.failure = error
        log("failed", level=logging.ERROR, **where_of(error))
        service.on_failure()
    else:
        log("ready", model=service.settings.model)


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        error = HTTPException(405, headers={"Allow": _allowed(request)})
    return response_of(invalid(error.errors()) if isinstance(error, RequestValidationError) else problem_of(error))


def _allowed(request: Request) -> str:
    """The methods that a path takes; the router names those of one of its endpoints alone."""
    asked = [(method, {**request.scope, "method": method}) for method in METHODS]
    found = (name for name, scope in asked if any(r.matches(scope)[0] is Match.FULL for r in request.app.routes))
    return ", ".join(found)
