"""``MPlusMemoryMiddleware``: latent memory for agents of ``create_agent``, separate for each user or thread."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.config import get_config
from langgraph.runtime import Runtime

from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.messages import text_of


class MemoryState(AgentState[Any]):
    """The middleware's state in a checkpoint: ids of the messages that are in memory, not the memory itself."""

    mplus_written: NotRequired[Annotated[list[str], PrivateStateAttr]]


class MPlusMemoryMiddleware(AgentMiddleware[MemoryState, Any]):
    """Writes each turn of an agent into latent memory once, and reads that memory at every model call.

    The memory is named by ``runtime.context["memory_key"]`` (or an attribute of that name), else by
    ``config["configurable"]``: the first given of ``memory_key``, ``user_id`` and ``thread_id``. A chat made
    with ``memory=`` has only that memory.

    Args:
        chat: The model; give it a ``MemoryStore`` if memories should outlive the process.
        tools: Also offer the agent ``remember``, ``recall`` and ``forget``.
    """

    state_schema = MemoryState

    def __init__(self, chat: MPlusChat, *, tools: bool = False) -> None:
        super().__init__()
        self.chat = chat
        self.tools = memory_tools(chat) if tools else []

    def _key(self, runtime: Runtime[Any]) -> str | None:
        if self.chat.memory is not None:
            return None
        key = _from_context(runtime.context)
        return current_key(self.chat) if key is None else key

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Let the model read this user's memory."""
        return handler(self._remembering(request))

    async def awrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Let the model read this user's memory."""
        return await handler(self._remembering(request))

    def _remembering(self, request: ModelRequest) -> ModelRequest:
        key = self._key(request.runtime)
        if key is None:
            return request
        return request.override(model_settings={**request.model_settings, "memory_key": key})

    def after_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Write the turns that are not in memory yet."""
        written = list(state.get("mplus_written", []))
        fresh = [m for m in state["messages"] if _worth_writing(m) and m.id not in written]
        if not fresh:
            return None
        self.chat.memorize(fresh, memory_key=self._key(runtime))
        return {"mplus_written": [*written, *(str(m.id) for m in fresh)]}

    async def aafter_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Write the turns that are not in memory yet."""
        written = list(state.get("mplus_written", []))
        fresh = [m for m in state["messages"] if _worth_writing(m) and m.id not in written]
        if not fresh:
            return None
        await self.chat.amemorize(fresh, memory_key=self._key(runtime))
        return {"mplus_written": [*written, *(str(m.id) for m in fresh)]}


def _worth_writing(message: BaseMessage) -> bool:
    return isinstance(message, HumanMessage | AIMessage) and bool(message.id) and bool(text_of(message).strip())


def _from_context(context: Any) -> str | None:
    key = context.get("memory_key") if isinstance(context, Mapping) else getattr(context, "memory_key", None)
    return None if key is None else str(key)


def current_key(chat: MPlusChat) -> str | None:
    """The memory that the running graph's config names."""
    if chat.memory is not None:
        return None
    try:
        configurable: Mapping[str, Any] = get_config().get("configurable", {})
    except RuntimeError:  # called outside a graph
        configurable = {}
    for name in ("memory_key", "user_id", "thread_id"):
        if configurable.get(name) is not None:
            return str(configurable[name])
    return chat.memory_key


def memory_tools(chat: MPlusChat) -> list[BaseTool]:
    """Tools ``remember``, ``recall`` and ``forget`` for an agent, on the memory of the present user or thread."""

    def remember(text: str, source: str = "remembered") -> str:
        """Remember a text for later. The source is a short name for it."""
        chat.memorize(text, source=source, memory_key=current_key(chat))
        return f"Remembered as {source}."

    def recall(query: str) -> str:
        """Find what is remembered about something."""
        with chat.opened(current_key(chat)) as memory:
            found = chat.loaded.search(memory, query, limit=3)
        return "\n".join(f"{s.source}: {' '.join(s.texts)}".strip() for s in found) or "Nothing is remembered."

    def forget(source: str) -> str:
        """Forget everything remembered under a source name."""
        gone = chat.forget(source, memory_key=current_key(chat))
        return f"Forgot {source}." if gone else f"Nothing is remembered as {source}."

    return [StructuredTool.from_function(function) for function in (remember, recall, forget)]
