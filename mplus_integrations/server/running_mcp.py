"""Runs the tools of MCP without a web server: for a program that starts them, or over HTTP for this machine."""

import asyncio
import sys

from mplus import MPlus
from mplus_integrations.server.heap import share_heap
from mplus_integrations.server.mcp_tools import mcp_server
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings


def run_mcp(settings: ServeSettings, memory: str, *, over_http: bool, model: MPlus | None = None) -> None:
    """Serve one memory by MCP: by standard input and output, or by HTTP on this machine.

    Args:
        settings: The model, the store, and where HTTP listens.
        memory: Name of the memory.
        over_http: Whether by HTTP.
        model: A loaded model; None: the one that the settings name.
    """
    share_heap()
    service = Service(settings, model=model)
    server = mcp_server(service, memory=memory)
    service.load()
    try:
        if over_http:
            # Standard output belongs to the protocol, so people are told on standard error.
            sys.stderr.write(f"mplus: tools at http://{settings.host}:{settings.port}/mcp\n")
            server.run(
                "streamable-http", host=settings.host, port=settings.port, stateless_http=True, json_response=True
            )
        else:
            asyncio.run(server.run_stdio_async())
    finally:
        service.close()
