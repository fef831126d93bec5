"""Settings of answers, the same in both frameworks. An unknown name is an error, and None stands for the default."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mplus import MPlus, SamplingParams, UnknownNameError
from mplus.given import Number, Whole

INSTEAD = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "model_name": "model",
    "stop_sequences": "stop",
    "session_id": "memory_key",
    "thread_id": "memory_key",
    "user_id": "memory_key",
    "conversation_id": "memory_key",
    "chat_store": "store",
    "chat_store_key": "memory_key",
    "persist_dir": "store",
    "persist_directory": "store",
    "collection_name": "memory_key",
    "model_id": "model",
    "max_length": "max_tokens",
    "context_window": "model, whose own window counts",
    "system_prompt": "a system message",
}
"""Our names for settings that other libraries, or M+ itself, call differently."""


def instead_where(known: Collection[str], *, of: str = "") -> dict[str, str]:
    """What to write instead of names that other libraries use, where these names are known.

    What is not known there may be a setting of what answers: ``chat=MPlusChat(store=…)``.

    Args:
        known: The names.
        of: The class of the object that has the others; empty: the one whose argument is known.
    """
    holder = f"{of}({{}})" if of else next((text for name, text in HOLDERS.items() if name in known), "")
    given = dict(INSTEAD)
    for name, ours in INSTEAD.items():
        if ours.isidentifier() and ours not in known and holder:
            given[name] = holder.format(VALUES.get(ours, f"{ours}=…"))
    return given


HOLDERS = {"chat": "chat=MPlusChat({})", "llm": "llm=MPlusLLM({})"}
VALUES = {"store": "store=mplus.MemoryStore(folder)"}


PromptTurns = Annotated[int, Field(ge=0, strict=True)] | Literal["all"]
"""How many of the latest turns before a question stand in the prompt; "all": as many as fit."""


class KnownNames(BaseModel):
    """Base class that refuses unknown arguments, and takes None as an argument's default."""

    @model_validator(mode="before")
    @classmethod
    def _known_and_given(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):  # an object that has been validated already
            return given
        names = {name: value for name, value in given.items() if name != "class_name"}  # LlamaIndex's JSON contains it
        known = {*cls.model_fields, *(field.alias for field in cls.model_fields.values() if field.alias)}
        UnknownNameError.check(names, known, of=cls.__name__, instead=instead_where(known))
        return {name: value for name, value in names.items() if value is not None}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with other values of some fields.

        Raises:
            UnknownNameError: There is no field of that name.
        """
        UnknownNameError.check(update or {}, type(self).model_fields, of=type(self).__name__, instead=INSTEAD)
        return super().model_copy(update=update, deep=deep)


class AnswerSettings(KnownNames):
    """How answers are generated; ranges are checked by ``mplus.SamplingParams``."""

    max_tokens: Whole = 256
    """Most tokens of an answer."""
    temperature: Number = 0.0
    """0 always takes the likeliest token."""
    top_p: Number = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: Whole = 0
    """Sample from this many likeliest tokens; 0 from all."""
    repetition_penalty: Number = 1.0
    """Above 1 makes tokens that occur in the prompt or answer less likely."""
    stop: str | list[str] | None = None
    """Strings that end an answer."""
    seed: Whole | None = None
    """The same seed gives the same answer."""
    timeout: Number | None = None
    """Seconds after which an answer is cut off; None: never."""
    abstain_below: Number | None = None
    """Reply with ``abstain_reply`` if the confidence in an answer in text is below this; None: never."""
    abstain_reply: str = "I don't know."
    """The reply that is given instead of the answer."""
    decline_threshold: Number | None = None
    """Probability of declining ("I don't know.") from which on an answer from memory declines: 1 hardly ever, 0 has no
    threshold: whenever that is likeliest; None: the model's (``MPlus.decline_threshold``)."""

    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's chat template, such as ``{"enable_thinking": False}``."""
    gate: Literal["auto", "always", "never"] = "auto"
    """Whether an answer reads memory: as the model's gate decides, always, or never."""
    prompt_turns: PromptTurns | None = None
    """How many of the latest turns before the question also stand in the prompt; earlier ones are read from memory.
    "all": as many as fit. None: what the model answers best with (``MPlus.prompt_turns``)."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self.sampling()
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with other values of some fields.

        Raises:
            UnknownNameError: There is no field of that name.
            ValueError: A setting of answers is out of range.
        """
        copied = super().model_copy(update=update, deep=deep)
        if (update or {}).keys() & AnswerSettings.model_fields.keys():
            AnswerSettings.model_validate(copied._own_settings())
        return copied

    def _own_settings(self) -> dict[str, Any]:
        """The settings by name, without other fields of the object."""
        return {name: getattr(self, name) for name in AnswerSettings.model_fields}

    def sampling(self) -> SamplingParams:
        """The settings as ``MPlus.generate`` takes them.

        Raises:
            ValueError: One of them is out of range.
        """
        settings = self._own_settings()
        del settings["prompt_turns"], settings["chat_template_kwargs"]
        settings["max_new_tokens"] = settings.pop("max_tokens")
        try:
            return SamplingParams.model_validate(settings)
        except ValidationError as error:
            wrong = error.errors()[0]
            name = str(wrong["loc"][0] if wrong["loc"] else "stop").replace("max_new_tokens", "max_tokens")
            raise ValueError(f"{name}={wrong['input']!r:.60}: {wrong['msg']}.") from error


def conversation_name(given: object) -> str | None:
    """The name of a conversation as text; None where there is none.

    Raises:
        ValueError: It is neither text, a number nor a UUID.
    """
    if given is None or given == "":
        return None
    if isinstance(given, bool) or not isinstance(given, str | int | UUID):
        raise ValueError(f"conversation_id={given!r:.60} is {type(given).__name__}: expected text, a number or a UUID.")
    return str(given)


ConversationName = Annotated[str | None, BeforeValidator(conversation_name)]
"""The type of a field that names a conversation."""


class Call(AnswerSettings):
    """Arguments of one call: sampling, form of the answer, and memory."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    tools: list[dict[str, Any]] | None = None
    """Tools that may be called, as OpenAI describes them."""
    tool_choice: str | dict[str, Any] | bool | None = None
    """Whether to call one: "auto", "any", "none", or which."""
    parallel_tool_calls: bool = True
    """Whether an answer may have several calls; if not, only the first is returned."""
    response_format: dict[str, Any] | None = None
    """A JSON schema that the answer follows, as OpenAI describes it."""
    memory_key: Any = None
    """Name of the memory to read."""
    conversation_id: ConversationName = None
    """Name of the conversation, which tells it from others in the same memory: what it takes back is forgotten."""
    conversation_part: str = ""
    """The part of an application that asks, such as a node of a graph; what others were told is no edit of its own."""
    conversation_says: Sequence[str] | None = None
    """Ids of all messages that the application keeps of the conversation; what was said under others is forgotten."""
    use_memory: bool = True
    """Whether the call reads and writes memory; without, it sees only its prompt."""
    where: Mapping[str, Any] | Callable[[str, Mapping[str, Any]], Any] | None = Field(default=None)
    """The sources to read: a filter of metadata, or a test of name and metadata."""
    since: Any = None
    """Read only what was said from then on: a datetime, a date (its whole day), ISO 8601 text or Unix seconds."""
    until: Any = None
    """Read only what was said up to then."""
    as_of: Any = None
    """Answer as the memory was then: nothing that was said later is read, but for turns in the prompt."""
    model: str | MPlus | None = None
    """Another model for this call."""

    def times(self) -> dict[str, Any]:
        """When what is read was said."""
        return {"since": self.since, "until": self.until, "as_of": self.as_of}

    def turns_in_prompt(self, model: MPlus) -> int | None:
        """How many of the latest turns stand in the prompt; None: as many as fit."""
        return turns_in_prompt(self.prompt_turns, model)


def turns_in_prompt(wanted: PromptTurns | None, model: MPlus) -> int | None:
    """How many of the latest turns stand in a model's prompt; None: as many as fit."""
    if wanted is None:
        return model.prompt_turns
    return None if wanted == "all" else wanted
