"""``MPlusLLM``: a LlamaIndex LLM whose memory is latent and never fills the prompt."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.schema import BaseNode
from llama_index.core.settings import Settings
from llama_index.core.tools import BaseTool
from llama_index.core.types import PydanticProgramMode
from pydantic import PrivateAttr, model_validator

from mplus import Memory, UnknownNameError
from mplus_integrations.answering import Answer, Answering, Asked, Piece
from mplus_integrations.arguments import checked_several
from mplus_integrations.forms import check_form, tool_choice
from mplus_integrations.latents import Latents, Shared, Where, check_memory
from mplus_integrations.llama_index.messages import (
    Prompt,
    Turn,
    as_prompt,
    described,
    memorized,
    to_chat,
    to_completion,
    to_piece,
    to_response,
)
from mplus_integrations.llama_index.structured import StructuredPredict
from mplus_integrations.memorized import Memorized
from mplus_integrations.saved import not_saved
from mplus_integrations.settings import Call
from mplus_integrations.worker import answered, streamed

F = TypeVar("F", bound=Callable[..., Any])

_TEMPLATE = "prompts have the form of the tokenizer's chat template."
READS_NOTHING = "reads_nothing"
"""Key in JSON of an LLM ``without_memory``."""
UNUSED = {
    "messages_to_prompt": _TEMPLATE,
    "completion_to_prompt": _TEMPLATE,
    "query_wrapper_prompt": _TEMPLATE,
    "pydantic_program_mode": "objects are always made by constrained decoding.",
}
"""Arguments of LlamaIndex's LLMs that have no meaning here, and why."""


Heard = Callable[[Mapping[str, Any]], None]
"""What is told about an answer: what its ``raw`` holds."""


def mplus_llm(llm: LLM | None) -> "MPlusLLM":
    """The LLM itself if it can read latents; None: ``Settings.llm``, or a new one where that is not set.

    Raises:
        ValueError: It cannot read latents.
    """
    named = "llm"
    if llm is None:
        if Settings._llm is None:  # ``Settings.llm`` would make a hosted LLM
            return MPlusLLM()
        llm, named = Settings.llm, "Settings.llm"
    if not isinstance(llm, MPlusLLM):
        raise ValueError(
            f"{named}={type(llm).__name__}: expected an MPlusLLM, the only one that can read latents. Pass "
            "llm=MPlusLLM()."
        )
    return llm


def _reported_chat(function: F) -> F:
    """LlamaIndex's callbacks and instrumentation around a chat method."""
    return llm_chat_callback()(function)


def _reported_completion(function: F) -> F:
    """LlamaIndex's callbacks and instrumentation around a completion method."""
    return llm_completion_callback()(function)


class MPlusLLM(StructuredPredict, Answering[str | BaseNode | ChatMessage], FunctionCallingLLM):
    """A local model that remembers.

        llm = MPlusLLM()
        llm.memorize("My dog is called Biscuit.", source="notes")
        llm.complete("What is my dog called?").text

    Weights are loaded at the first use, once per process and model. Messages that come from an
    ``MPlusMemory`` are read with its latents; everything else with the memory that this object names.

    Arguments of a call: all answer settings of the constructor, ``memory_key``, ``where`` (the sources to read),
    ``model``, ``tools``, ``tool_choice``, ``allow_parallel_tool_calls`` and ``response_format``. Another name is an
    error; None stands for the default. ``system_prompt`` begins every conversation. Where an answer has not the form
    that was asked for, such as JSON or a tool call that was cut off, a ``ValueError`` says why it ended.
    """

    _bound: Latents | None = PrivateAttr(default=None)
    _bound_where: Where | None = PrivateAttr(default=None)
    _bound_shared: tuple[Shared, ...] | None = PrivateAttr(default=None)
    _reads_nothing: bool = PrivateAttr(default=False)
    _heard: Heard | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _has_a_chat_template(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            used = next((name for name in UNUSED if given.get(name) not in (None, PydanticProgramMode.DEFAULT)), None)
            if used is not None:
                raise ValueError(f"{used}= of an MPlusLLM: {UNUSED[used]} Leave it out.")
        return given

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "mplus_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """Sizes and abilities. The context window is the number of tokens left beside a full memory."""
        window = self.window
        return LLMMetadata(
            context_window=window,
            num_output=min(self.sampling().max_new_tokens, window // 2),
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Settings as JSON, with the place of the store. What JSON cannot hold is noted as missing."""
        found = super().to_dict(**kwargs)
        if self._reads_nothing:
            found[READS_NOTHING] = True
        elif self._bound is not None or self._bound_shared is not None:
            found["memory"] = not_saved(self._bound)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """An LLM of what ``to_dict`` returned; arguments take the place of what is there.

        Raises:
            ValueError: It had something that JSON does not hold, such as ``memory=``, and it is not given again.
            MemoryKeyError: It had an encrypted store, and ``store=`` is not given.
        """
        reads_nothing = data.get(READS_NOTHING, False)
        found = super().from_dict({name: value for name, value in data.items() if name != READS_NOTHING}, **kwargs)
        return cast("Self", found.without_memory()) if reads_nothing else found

    def without_memory(self) -> "MPlusLLM":
        """A copy of this LLM that reads no memory and writes none, for steps that only see their prompt.

        Such as putting a question into other words, or judging an answer.
        """
        bound = self.reading(Latents())
        bound._reads_nothing, bound.prompt_turns = True, "all"
        return bound

    def reading(
        self,
        latents: Latents | Memory,
        where: Where | None = None,
        *,
        shared: Sequence[Shared] = (),
        heard: Heard | None = None,
    ) -> "MPlusLLM":
        """A copy of this LLM that always reads the given memory; weights are shared.

        Args:
            latents: The memory to read.
            where: A test of the sources to read.
            shared: Memories to read beside it.
            heard: Called with what is told about each answer, as in its ``raw``.
        """
        if latents is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ValueError("latents=None: expected a Memory, or another's latents.")
        check_memory(latents, None, name="latents")
        bound = self.model_copy()
        bound._bound = Latents(memory=latents) if isinstance(latents, Memory) else latents
        bound._bound_where, bound._bound_shared, bound._reads_nothing = where, tuple(shared), False
        bound._heard = heard
        return bound

    # --- LlamaIndex's eight methods ---------------------------------------------------------------

    @_reported_chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._answered(*self._asked(messages, kwargs), threading.Event())

    @_reported_chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer piece by piece; leaving the loop stops generation."""
        return self._chunks(*self._asked(messages, kwargs), threading.Event())

    @_reported_chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """``chat`` without blocking the event loop; cancelling it stops generation."""
        return await answered(partial(self._answered, *self._asked(messages, kwargs)))

    @_reported_chat
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """``stream_chat`` without blocking the event loop."""
        return streamed(partial(self._chunks, *self._asked(messages, kwargs)))

    @_reported_completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one message; with ``formatted``, continue the given text itself."""
        asked = self._asked(as_prompt(prompt, formatted), kwargs)
        return to_completion(self._answered(*asked, threading.Event()))

    @_reported_completion
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """``complete`` piece by piece; leaving the loop stops generation."""
        asked = self._asked(as_prompt(prompt, formatted), kwargs)
        return (to_completion(chunk) for chunk in self._chunks(*asked, threading.Event()))

    @_reported_completion
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """``complete`` without blocking the event loop; cancelling it stops generation."""
        asked = self._asked(as_prompt(prompt, formatted), kwargs)
        return to_completion(await answered(partial(self._answered, *asked)))

    @_reported_completion
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """``stream_complete`` without blocking the event loop."""
        chunks = streamed(partial(self._chunks, *self._asked(as_prompt(prompt, formatted), kwargs)))

        async def completions() -> CompletionResponseAsyncGen:
            try:
                async for chunk in chunks:
                    yield to_completion(chunk)
            finally:
                await chunks.aclose()

        return completions()

    # --- tools ------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        tools = checked_several(tools or [], "tools", BaseTool)
        choice = kwargs.pop("tool_choice", None)
        chosen = tool_choice("required" if choice is None and tool_required else choice, tools)
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        if not tools:
            return {"messages": messages, **kwargs}
        return {
            "messages": messages,
            "tools": [described(tool) for tool in tools],
            "tool_choice": chosen,
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The valid calls of an answer; those that are not valid are in ``raw["invalid_tool_calls"]``.

        Raises:
            ValueError: There is none, and that is an error; or an argument that does not exist.
        """
        UnknownNameError.check(kwargs, {"response", "error_on_no_tool_call"}, of="get_tool_calls_from_response")
        checked_several([response], "response", ChatResponse)
        calls = [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=call.tool_kwargs)
            for call in response.message.blocks
            if isinstance(call, ToolCallBlock) and isinstance(call.tool_kwargs, dict)
        ]
        if calls or not error_on_no_tool_call:
            return calls
        raw = response.raw if isinstance(response.raw, dict) else {}
        if invalid := raw.get("invalid_tool_calls"):
            raise ValueError(
                f"The model's call {invalid[0]['text']!r:.120} is not valid ({invalid[0]['error']}); it ended because "
                f"of {raw.get('finish_reason')!r}. Allow it more max_tokens."
            )
        raise ValueError(f"Expected at least one tool call, but the answer is {response.message.content!r:.120}.")

    # --- answers ----------------------------------------------------------------------------------

    def _asked(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> tuple[Prompt, Asked, Call]:
        """The given prompt, the converted prompt and the settings of the call. Errors are raised before generation."""
        names = {"allow_parallel_tool_calls": "parallel_tool_calls"}
        call = self._as_call({names.get(name, name): value for name, value in kwargs.items()})
        if isinstance(prompt, str):
            return prompt, prompt, call
        prompt = self._with_system_prompt(prompt)
        return prompt, to_chat(prompt), call

    def _with_system_prompt(self, messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
        """The messages behind the LLM's system prompt, which ``predict`` puts there already."""
        if not self.system_prompt or not messages:
            return messages
        first = messages[0]
        if first.role == MessageRole.SYSTEM and first.content == self.system_prompt:
            return messages
        return [ChatMessage(role=MessageRole.SYSTEM, content=self.system_prompt), *messages]

    def _memorized(self, item: Any) -> Memorized:
        return memorized(item)

    def _latents_of(self, prompt: Prompt, call: Call) -> Latents:
        if self._reads_nothing and call.memory_key is not None:
            raise ValueError(f"memory_key={call.memory_key!r:.60} of an MPlusLLM without_memory(): leave it out.")
        if self._reads_nothing or not call.use_memory:
            return Latents()  # of this call alone, so that no conversation can meet another there
        if call.memory_key is not None:
            return self.latents(call.memory_key)
        if self._bound is not None:
            return self._bound
        turns = [] if isinstance(prompt, str) else [m for m in reversed(prompt) if isinstance(m, Turn)]
        return next((found for turn in turns if (found := turn.latents) is not None), None) or self.latents(
            self._present_key(None, call.conversation_id)
        )

    def _beside(self) -> dict[str, Any]:
        shared = self.shared_memories() if self._bound_shared is None else self._bound_shared
        return {"where": self._bound_where, "shared": shared}

    def _chunks(
        self, prompt: Prompt, asked: Asked, call: Call, left: threading.Event
    ) -> Generator[ChatResponse, None, None]:
        """The answer as it grows; the last item has its calls, and ``raw``."""
        shown = ""
        for piece in self._pieces(asked, call, self._latents_of(prompt, call), left, **self._beside()):
            if isinstance(piece, Piece):
                shown += piece
                yield to_piece(shown, piece)
            else:
                yield to_response(self._checked(call, piece), is_last_chunk=True)

    def _answered(self, prompt: Prompt, asked: Asked, call: Call, left: threading.Event) -> ChatResponse:
        answer = self._answer(asked, call, self._latents_of(prompt, call), left, **self._beside())
        return to_response(self._checked(call, answer), is_last_chunk=False)

    def _checked(self, call: Call, answer: Answer) -> Answer:
        """The answer, if it has the form that was asked for."""
        calls = [one for _, one in answer.calls]
        check_form(call, answer.generation, calls, [one for _, one in answer.invalid_calls])
        if self._heard is not None:
            self._heard(answer.about)
        return answer
