"""M+ for agents by the Model Context Protocol: remember, recall, ask, forget and list."""

from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import ToolAnnotations
from pydantic import Field
from starlette.applications import Starlette

import mplus
from mplus_integrations.answering import Answer
from mplus_integrations.server.access import may_open, memory_for
from mplus_integrations.server.keys import Caller
from mplus_integrations.server.memories import Item, Times
from mplus_integrations.server.memories_wire import Named
from mplus_integrations.server.problems import log_hidden, problem_of
from mplus_integrations.server.routes import plain_json
from mplus_integrations.server.service import Question, Service
from mplus_integrations.server.wire import When

P = ParamSpec("P")
T = TypeVar("T")

INSTRUCTIONS = (
    "A long-term memory. Call remember for what should be known in later conversations, recall or ask before you say "
    "that you do not know something about the user, forget when the user asks for it, and list to see what is known."
)
SHOWN = 2000
"""Most characters of a source that recall shows."""

At = Annotated[When, Field(description="When it was said: ISO 8601, such as 2024-03-03, or Unix seconds; if not now.")]
Since = Annotated[When, Field(description="Only what was said from then on: ISO 8601, where a date is its whole day.")]
Until = Annotated[When, Field(description="Only what was said up to then.")]
AsOf = Annotated[When, Field(description="The memory as it was then: nothing that was said later.")]


def mcp_server(service: Service, *, memory: str | None = None) -> MCPServer[Any]:
    """The tools over a service.

    Args:
        service: The service.
        memory: The memory of every call; None: that of the request's key or header, as elsewhere in the server.

    Raises:
        ValueError: The name is not allowed.
    """
    given = None if memory is None else mplus.MemoryStore.check_name(memory)
    tools = Tools(service, given)
    reads = ToolAnnotations(read_only_hint=True, destructive_hint=False, open_world_hint=False)
    writes = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    removes = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    offered = (
        (tools.remember, writes),
        (tools.recall, reads),
        (tools.ask, reads),
        (tools.forget, removes),
        (tools.list, reads),
    )
    return MCPServer(
        "mplus",
        version=mplus.__version__,
        instructions=INSTRUCTIONS,
        log_level="WARNING",
        tools=[_exact(Tool.from_function(tool, annotations=annotations)) for tool, annotations in offered],
    )


def _exact(tool: Tool) -> Tool:
    """The tool, for which a name that it does not take is an error; an agent's ``date=`` would silently be nothing."""
    arguments = tool.fn_metadata.arg_model
    arguments.model_config["extra"] = "forbid"
    arguments.model_rebuild(force=True)
    return tool.model_copy(update={"parameters": arguments.model_json_schema(by_alias=True)})


def mcp_app(server: MCPServer[Any]) -> Starlette:
    """The tools by streamable HTTP at /mcp. Each request stands alone, so no session can be taken over.

    The door in front of it checks keys, hosts and origins.
    """
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(stateless_http=True, json_response=True, transport_security=unchecked)


class Tools:
    """What an agent can do with a memory. The docstrings are for the agent.

    Args:
        service: The service.
        memory: The memory of every call; None: that of the request.
    """

    def __init__(self, service: Service, memory: str | None) -> None:
        self._service, self._given = service, memory

    async def remember(
        self,
        text: Annotated[str, Field(min_length=1, description="What to remember, in whole sentences.")],
        context: Context[Any],
        source: Annotated[
            Named | None, Field(description="A name, to find and forget it by. By default one is made.")
        ] = None,
        at: At = None,
        dated: Annotated[
            bool, Field(description="Whether it begins with that date, so that an answer can tell it.")
        ] = False,
    ) -> dict[str, Any]:
        """Remember a text for later conversations."""
        if dated and at is None:
            raise ToolError("dated without at: expected when it was said, such as '2024-03-03'.")
        item = Item(text, source, {}, at, dated)
        return await self._done("write", context, self._service.memories.write, [item])

    async def recall(
        self,
        query: Annotated[str, Field(min_length=1, description="What to look for.")],
        context: Context[Any],
        limit: Annotated[int, Field(ge=1, le=50, description="Most sources.")] = 5,
        since: Since = None,
        until: Until = None,
        as_of: AsOf = None,
    ) -> dict[str, Any]:
        """Find what was remembered about something: the sources that fit best, with their text."""
        name, times = self._memory(context), Times(since, until, as_of)
        work, options = self._service.memories.search, {"limit": limit, "where": None, "times": times}
        found = await self._tried(self._service.operate, "search", name, work, [name], query, **options)
        return {"found": [{**one, "texts": [text[:SHOWN] for text in one["texts"]]} for one in found]}

    async def ask(
        self,
        question: Annotated[str, Field(min_length=1, description="A question about what was remembered.")],
        context: Context[Any],
        since: Since = None,
        until: Until = None,
        as_of: AsOf = None,
    ) -> dict[str, Any]:
        """Ask the memory's own model a question; the answer names the sources that it read."""
        name, prompt = self._memory(context), [{"role": "user", "content": question}]
        shared = [one for one in self._service.settings.shared if one != name]
        asked = Question(prompt, Times(since, until, as_of)._asdict(), name, shared, only_reads=True)
        answer = await self._tried(self._service.answer, asked)
        sources = [{"source": one["source"], "share": one["share"]} for one in answer.about["recalled"]]
        return plain_json({"answer": answer.text, "confidence": answer.about["confidence"], "sources": sources})

    async def forget(
        self, source: Annotated[str, Field(min_length=1, description="The name of the source.")], context: Context[Any]
    ) -> dict[str, Any]:
        """Forget a source for good; list has the names."""
        removed = await self._done("forget", context, self._service.memories.forget, source)
        return {"source": source, "memory_tokens": removed}

    async def list(
        self, context: Context[Any], since: Since = None, until: Until = None, as_of: AsOf = None
    ) -> dict[str, Any]:
        """List the sources that are remembered; earliest and latest tell when they were said, as Unix seconds."""
        work, times = self._service.memories.sources, Times(since, until, as_of)
        sources = await self._done("sources", context, work, times=times)
        names = ("name", "text_tokens", "earliest", "latest", "first_written", "last_written", "pinned", "metadata")
        return {"sources": [{name: source[name] for name in names} for source in sources]}

    async def _done(
        self, operation: str, context: Context[Any], work: Callable[..., T], *args: Any, **kwargs: Any
    ) -> T:
        name = self._memory(context)
        return await self._tried(self._service.operate, operation, name, work, name, *args, **kwargs)

    def _memory(self, context: Context[Any]) -> str:
        if self._given is not None:
            return self._given
        request: Any = context.request_context.request
        caller: Caller = request.state.caller
        try:
            return may_open(caller, memory_for(caller, None, request.headers))
        except Exception as error:
            raise _told(error) from error

    async def _tried(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            found = await work(*args, **kwargs)
            return found if isinstance(found, Answer) else plain_json(found)
        except Exception as error:
            raise _told(error) from error


def _told(error: Exception) -> ToolError:
    problem = problem_of(error)
    log_hidden(problem, error)
    return ToolError(str(problem.detail))
