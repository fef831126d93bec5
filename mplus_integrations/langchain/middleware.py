"""``MPlusMemoryMiddleware``: latent memory for agents of ``create_agent``, separate for each user or thread."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.runtime import Runtime

from mplus import UnknownNameError
from mplus_integrations.conversations import GRAPH_THREAD as THREAD
from mplus_integrations.langchain.agent_tools import current_key, memory_tools
from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.messages import is_summary, to_chat, written_text
from mplus_integrations.langchain.runs import Run, current_run
from mplus_integrations.langchain.thread_turns import ThreadTurns
from mplus_integrations.latents import all_or_nothing, forget_all
from mplus_integrations.settings import instead_where
from mplus_integrations.sources import checked_name
from mplus_integrations.worker import in_thread

INSTEAD_OF_THREADS = {
    **instead_where({"chat"}),
    **dict.fromkeys(
        ("memory_key", "session_id", "thread_id", "user_id"), "config={'configurable': {'memory_key': …}} of a call"
    ),
}
"""What to write instead of arguments of other memories."""


class MemoryState(AgentState[Any]):
    """The middleware's state in a checkpoint: ids of the messages that memory knows, not the memory itself."""

    mplus_written: NotRequired[Annotated[list[str], PrivateStateAttr]]


class MPlusMemoryMiddleware(AgentMiddleware[MemoryState, Any]):
    """Writes each turn of an agent into latent memory once, and reads that memory at every model call.

    A turn is written when the agent has answered, under its message's id, or a hash where that names something else.
    From then on it is read from memory; how many of the latest turns also stand in the prompt is the model's
    (``MPlus.prompt_turns``) or the chat's ``prompt_turns``.
    What the thread no longer says is forgotten: removed or replaced messages, and what was said after a checkpoint that
    the thread goes back to. Without a checkpointer nothing is taken back, and what is sent again is there once. This
    holds for an agent within another graph too, which may be given a part of the messages, unless it keeps a state of
    its own (``checkpointer=True``).
    Summaries of ``SummarizationMiddleware`` stand in the prompt as instructions and are not written; the turns that
    they replace stay in memory.

    The memory is named as for every call of the chat: by ``memory_key``, else by ``user_id`` of the runtime's context
    or of ``config["configurable"]``, else by the chat's own ``memory_key``, else by the ``thread_id``, here also where
    the chat has no store. A chat made with ``memory=`` has only that memory.

    Args:
        chat: The model; give it a ``MemoryStore`` if memories should outlive the process.
        tools: Also offer the agent ``remember``, ``recall`` and ``forget``.
        others: No others are accepted; for those of other memories the error says what to write instead.
    """

    state_schema = MemoryState

    def __init__(self, chat: MPlusChat, *, tools: bool = False, **others: Any) -> None:
        UnknownNameError.check(others, {"chat", "tools"}, of="MPlusMemoryMiddleware", instead=INSTEAD_OF_THREADS)
        super().__init__()
        self.chat = chat
        self.tools = memory_tools(chat) if tools else []

    def _key(self, runtime: Runtime[Any]) -> str | None:
        if self.chat.memory is not None:
            return None
        return current_key(self.chat, runtime.context)

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

    def before_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Forget what the thread no longer says, and write earlier turns that are not in memory yet."""
        return self._synced(state, _before_question(state["messages"]), self._key(runtime), current_run())

    async def abefore_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Forget what the thread no longer says, and write earlier turns that are not in memory yet."""
        earlier = _before_question(state["messages"])
        return await in_thread(self._synced, state, earlier, self._key(runtime), current_run())

    def after_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Write the turns that are not in memory yet."""
        return self._synced(state, state["messages"], self._key(runtime), current_run())

    async def aafter_agent(self, state: MemoryState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Write the turns that are not in memory yet."""
        return await in_thread(self._synced, state, state["messages"], self._key(runtime), current_run())

    def forget_thread(self, thread_id: str, *, memory_key: str | None = None) -> int:
        """Forget the turns of a thread, as after ``checkpointer.delete_thread``, which tells no middleware.

        Args:
            thread_id: The thread.
            memory_key: The memory that has its turns; None: the chat's own, else the one named by the thread's id.

        Returns:
            How many turns were forgotten.

        Raises:
            ValueError: The thread is neither text, a number nor a UUID, or empty.
        """
        thread_id = checked_name(thread_id, "thread_id")
        key = None if self.chat.memory is not None else memory_key or self.chat.memory_key or thread_id
        with self.chat.opened(key) as memory:
            said = [source.name for source in memory.sources() if source.metadata.get(THREAD) == thread_id]
            if said:
                forget_all(memory, said)
        return len(said)

    async def aforget_thread(self, thread_id: str, *, memory_key: str | None = None) -> int:
        """``forget_thread`` without blocking the event loop."""
        return await in_thread(self.forget_thread, thread_id, memory_key=memory_key)

    def _synced(
        self,
        state: MemoryState,
        messages: Sequence[BaseMessage],
        key: str | None,
        run: Run,
    ) -> dict[str, Any] | None:
        """Let memory hold what a thread says, each message once; returns the state if it changes."""
        before = list(state.get("mplus_written", []))
        present = {str(message.id) for message in state["messages"]}
        said = {str(m.id): (text, m) for m in messages if m.id and (text := written_text(m))}
        texts = {name: text for name, (text, _) in said.items()}
        summaries = [str(message.id) for message in messages if is_summary(message)]
        if not before and not said:
            return None
        model = self.chat.loaded
        with self.chat.opened(key) as memory:
            turns, gone = ThreadTurns(run, {source.name: source for source in memory.sources()}), set[str]()
            if set(summaries) <= set(before):  # else turns are missing because they have just been summed up
                gone = turns.of_messages(set(before) - present)
                if not summaries:
                    earlier = turns.of_others(present)
                    # Where nothing is kept a run has what its caller sends, maybe a part, or under new ids.
                    sent = {(text,) for text in texts.values()}
                    gone |= earlier if run.is_kept else {name for name in earlier if turns.known[name].texts in sent}
            change = turns.changed(texts, gone)
            if change.gone or change.fresh:
                with all_or_nothing(memory) as fork:
                    for name in sorted(change.gone):
                        fork.forget(name)
                    if change.fresh:
                        roles = [to_chat([said[name][1]])[0]["role"] for name in change.fresh]
                        model.write(
                            fork,
                            [texts[name] for name in change.fresh],
                            source=list(change.fresh.values()),
                            metadata=[
                                {**run.metadata(name), "role": role}
                                for name, role in zip(change.fresh, roles, strict=True)
                            ],
                            keep_text=True,
                        )
        written = [name for name in before if name in present]
        written += [name for name in [*said, *summaries] if name not in written]
        return None if written == before else {"mplus_written": written}


def _before_question(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """The messages before the last question, which is written once it is answered."""
    asked = [n for n, m in enumerate(messages) if isinstance(m, HumanMessage) and not is_summary(m)]
    return messages[: asked[-1]] if asked else messages
