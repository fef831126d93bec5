"""Turns a prompt (plain completion or chat messages) into token ids; a user's text never becomes control tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mplus.chat_template import check_options, fitting, rendered
from mplus.generation.constrain import tool_call_text, tools_prompt
from mplus.given import refused
from mplus.inert import Inert, encode_inert, unused

Render = Callable[[Sequence[dict[str, Any]]], str]
"""Writes messages as the chat template does."""

ROLES = ("system", "user", "assistant", "tool")
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids.

    Attributes:
        input_ids: Token ids of the prompt.
        query: First and last-plus-one token of the question: the content of the last user message, or all of a
            plain completion.
    """

    input_ids: tuple[int, ...]
    query: tuple[int, int]


PromptLike = str | Sequence[Mapping[str, Any]] | Prompt
"""Text to complete, chat messages ``{"role", "content"}``, or either as token ids."""
Tools = Sequence[Mapping[str, Any]]
"""Tools described in a prompt, ``{"type": "function", "function": {…}}`` each."""
TemplateOptions = Mapping[str, Any] | None
"""Variables of the chat template, such as ``enable_thinking``."""


def encode_prompt(
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Prompt:
    """Token ids of a prompt: a string is completed as it is, messages go through the chat template.

    Special-token strings in any content, tool or option are encoded as plain text; only those of the template are
    control tokens.
    ``tools`` are described by the template, or in a system message if it does not support tools. Calls in earlier
    assistant messages are under ``tool_calls``, results in messages with role "tool". Where the template takes no
    system message, or no two messages of one role after each other, they are merged. ``options`` are variables of
    the template, such as ``enable_thinking``.

    Raises:
        ValueError: The prompt is empty, a message has an unknown role or content that is not text, or the template
            refuses the messages.
        UnknownNameError: The template has no variable of that name.
    """
    if options:
        check_options(tokenizer, options)
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError("prompt='': expected text. Pass at least one character.")
        eos = tokenizer.eos_token_id
        bos = [i for i in tokenizer("")["input_ids"] if i != eos]
        ids = [*bos, *encode_inert(tokenizer, prompt)]
        return Prompt(tuple(ids), (len(bos), len(ids)))
    is_listed = isinstance(prompt, Iterable)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_listed or isinstance(prompt, bytes | bytearray):
        raise refused("prompt", prompt, "text, or messages like {'role': 'user', 'content': '…'}")
    messages = [_checked(message, place) for place, message in enumerate(prompt)]
    if not messages:
        raise ValueError("prompt=[]: expected at least one message like {'role': 'user', 'content': '…'}.")
    asked = max((n for n, m in enumerate(messages) if m["role"] == "user"), default=len(messages) - 1)
    template = tokenizer.chat_template or ""
    if "tools" not in template:
        messages = [_told(message) for message in messages]
        if tools:
            asked += messages[0]["role"] != "system"
            messages = _with_system(messages, tools_prompt(tools))
            tools = None
    return _encode_chat(tokenizer, messages, tools, asked, options)


def _told(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and results as plain text, for a template that does not support tools."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = message.get("tool_calls") or ()
    if not calls:
        return message
    texts = [message.get("content") or ""]
    texts += [tool_call_text(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return {"role": message["role"], "content": "\n".join(filter(None, texts))}


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]


def _checked(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"Message {place} is {message!r:.60}: expected a mapping with 'role' and 'content'.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"Message {place} has role {role!r}: expected one of {', '.join(ROLES)}.")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise ValueError(f"Message {place} ({role}) has content {content!r:.60}: expected a string.")
    return dict(message)


def _encode_chat(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    tools: Sequence[Any] | None,
    asked: int,
    options: Mapping[str, Any] | None,
) -> Prompt:
    """Render the template with the real contents, then encode what it wrote, in which no content has control tokens."""
    messages = [{**message, "content": message.get("content") or ""} for message in messages]
    inert = Inert(tokenizer, [messages, tools, options])
    messages = [{**inert.marked(turn), **_spoken(inert, turn)} for turn in messages]
    tools, options = inert.marked(tools), inert.marked(options)
    question = messages[asked]["content"].strip()
    own = None if tokenizer.chat_template else PLAIN_TEMPLATE
    fewer = fitting(tokenizer, messages, template=own, tools=tools, options=options)
    if len(fewer) < len(messages):  # the question is then the end of a message that is merged of several
        asked = max((n for n, m in enumerate(fewer) if m["role"] == "user"), default=len(fewer) - 1)

    def render(turns: Sequence[dict[str, Any]]) -> str:
        return rendered(tokenizer, turns, template=own, tools=tools, options=options)

    written = render(fewer)
    if (parts := inert.apart([fewer, tools, options, question])) != [fewer, tools, options, question]:
        apart = rendered(tokenizer, parts[0], template=own, tools=parts[1], options=parts[2])
        if inert.controls_in(apart) != inert.controls_in(written):  # the template has made some of a user's characters
            (fewer, tools, options, question), written = parts, apart
    encoded = inert.encoded(written)
    start, end = _question_in(written, render, fewer, asked, question)
    query = encoded.within(len(inert.restored(written[:start])), len(inert.restored(written[:end])))
    before = [] if tokenizer.chat_template else [i for i in tokenizer("")["input_ids"] if i != tokenizer.eos_token_id]
    ids = (*before, *encoded.ids)
    return Prompt(ids, (query[0] + len(before), query[1] + len(before)) if query[1] > query[0] else (0, len(ids)))


def _spoken(inert: Inert, turn: Mapping[str, Any]) -> dict[str, Any]:
    """Role and content of a message; what an assistant said keeps the marks of its template."""
    role = turn["role"]
    return {"role": role, "content": inert.marked(turn["content"], by_assistant=role == "assistant")}


def _question_in(
    written: str, render: Render, messages: list[dict[str, Any]], asked: int, question: str
) -> tuple[int, int]:
    """First and last-plus-one character of the question in what the template wrote.

    The template writes once more, with marks around the question. If that changes anything else, because the template
    looks at how contents begin or end, the last place with the question's text counts.
    """
    if not question:
        return 0, 0
    content = messages[asked]["content"]
    before, _, after = content.rpartition(question)
    opened, closed = islice(unused(iter([written, content])), 2)
    around = f"{before}{opened}{question}{closed}{after}"
    again = render([*messages[:asked], {**messages[asked], "content": around}, *messages[asked + 1 :]])
    if again.replace(opened, "").replace(closed, "") != written or opened not in again:
        place = max(written.rfind(question), 0)
        return place, place + len(question) if question in written else place
    start, end = (len(again[: again.rindex(mark)].replace(opened, "").replace(closed, "")) for mark in (opened, closed))
    return start, end
