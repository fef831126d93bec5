"""Renders a chat template: within a number of steps, and merged where the template refuses a message's role or place.

A template is a program that comes with a checkpoint. Jinja's sandbox keeps it from the machine, but not from running
for ever.
"""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

from mplus.errors import UnknownNameError

STEPS = 2_000_000
"""Most lines that a template may run, a second or two; templates in use run some 30 for each message."""
STEPS_PER_MESSAGE = 10_000
COMPILED = "<template>"
"""The file name that Jinja gives to compiled templates."""
BETWEEN = "\n\n"
GIVEN = {
    *("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"),
    *("raise_exception", "strftime_now", "conversation", "chat_template", "tokenize", "tokenizer_kwargs", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("continue_final_message", "sanitize_control_tokens"),
}
"""Variables that every template gets, and arguments of the function that renders it."""
MOST_SHAPES = 1024

Message = dict[str, Any]
_ACCEPTED: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()
"""For each tokenizer, how conversations of a shape have to be merged for its template."""


class EndlessTemplateError(ValueError):
    """A chat template that ran for more steps than any template needs."""


@contextmanager
def limited_steps(steps: int) -> Generator[None]:
    """Count the lines that Jinja templates run in this block, in this thread.

    Raises:
        EndlessTemplateError: They are more than ``steps``.
    """
    left = steps

    def line(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise EndlessTemplateError(
                    f"The chat template did not end within {steps:,} steps. Use the tokenizer of another checkpoint, "
                    "or set tokenizer.chat_template to one that ends."
                )
        return line

    def called(frame: Any, _event: str, _argument: Any) -> Any:
        return line if frame.f_code.co_filename == COMPILED else None

    before = sys.gettrace()
    sys.settrace(called)
    try:
        yield
    finally:
        sys.settrace(before)


def rendered(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    template: str | None,
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The text of a prompt.

    Args:
        tokenizer: Brings the template.
        messages: Messages in the form that templates take.
        template: Used in place of the tokenizer's own.
        tools: Described by the template.
        options: Variables of the template, such as ``enable_thinking``.

    Raises:
        EndlessTemplateError: The template does not end.
        LargeTemplateError: It makes more text than any prompt needs.
        ValueError: It refuses these messages, or is no valid template.
    """
    from jinja2 import TemplateError

    from mplus.template_limits import LargeTemplateError, compiled, limited_room

    given = len(str([messages, tools, options]))
    with limited_steps(STEPS + STEPS_PER_MESSAGE * len(messages)), limited_room(given):
        try:
            own = None if _has_own_way(tokenizer) else compiled(tokenizer.get_chat_template(template, tools))
            if own is not None:
                return own.render(
                    messages=[{key: _plain(it) for key, it in turn.items() if it is not None} for turn in messages],
                    tools=None if tools is None else [_plain(_described(tool)) for tool in tools],
                    documents=None,
                    add_generation_prompt=True,
                    **{**tokenizer.special_tokens_map, **_plain(options or {})},
                )
            return tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                **(options or {}),
            )
        except (EndlessTemplateError, LargeTemplateError):
            raise
        except (TemplateError, TypeError, ValueError, SyntaxError, RuntimeError, OverflowError, MemoryError) as error:
            raise ValueError(f"The chat template refuses these messages: {error}") from error


def _described(tool: Any) -> Any:
    """A tool as its description; a function is described by its hints and docstring."""
    from transformers.utils.chat_template_utils import get_json_schema

    return tool if isinstance(tool, Mapping) else get_json_schema(tool)


def _plain(value: Any) -> Any:
    """A value of JSON. A template could call the methods of anything else."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast("list[Any]", value)]
    return value if value is None or type(value) in (str, bool, int, float) else str(value)


def _has_own_way(tokenizer: Any) -> bool:
    """Whether a tokenizer renders messages in its own way, without a template of Jinja's."""
    from transformers import PreTrainedTokenizerBase

    return type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template


def check_ends(tokenizer: Any) -> None:
    """Check that a tokenizer's chat template ends, with one message, and makes no more text than prompts need.

    Raises:
        EndlessTemplateError: It does not end.
        LargeTemplateError: It makes more.
    """
    from mplus.template_limits import LargeTemplateError

    if not getattr(tokenizer, "chat_template", None):
        return
    try:
        rendered(tokenizer, [{"role": "user", "content": "Hello"}], template=None)
    except (EndlessTemplateError, LargeTemplateError):
        raise
    except ValueError:
        return  # What else is wrong with it is said when it is used.


def check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """Check that a chat template has variables of these names.

    Raises:
        UnknownNameError: It has none of such a name; the message has those that it has.
    """
    refused = sorted(GIVEN & options.keys())
    if refused:
        raise UnknownNameError(
            f"chat_template_kwargs: {refused[0]!r} is given to every template already. Leave it out."
        )
    known = variables(tokenizer)
    if known is not None:
        UnknownNameError.check(options, known, of="chat_template_kwargs: this model's chat template")


def variables(tokenizer: Any) -> set[str] | None:
    """Names of the variables that a chat template takes, besides those of every template; None if it cannot be told."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template: Any = getattr(tokenizer, "chat_template", None) or ""
    texts = list(cast("dict[str, str]", template).values()) if isinstance(template, dict) else [str(template)]
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    found = set[str]()
    for text in texts:
        try:
            found |= meta.find_undeclared_variables(environment.parse(text))
        except TemplateError:
            return None  # It may use an extension of transformers; what is wrong with it is said when it is used.
    return found - GIVEN - set(environment.globals)


def fitting(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    template: str | None,
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Message]:
    """The messages, or fewer and longer ones where the template refuses them as they are.

    Some templates take no system message, and some take only turns of user and assistant in alternation. Then the
    system's text stands at the beginning of the next message of the user, and neighbours of one role become one.

    Raises:
        EndlessTemplateError: The template does not end.
        LargeTemplateError: It makes more text than any prompt needs.
        ValueError: It refuses the merged messages too; the error is that of the messages as they were.
    """
    from mplus.template_limits import LargeTemplateError

    def refusal(turns: list[Message]) -> ValueError | None:
        try:
            rendered(tokenizer, turns, template=template, tools=tools, options=options)
        except (EndlessTemplateError, LargeTemplateError):
            raise
        except ValueError as error:
            return error
        return None

    known = _ACCEPTED.setdefault(tokenizer, {})
    shape = (
        template or str(tokenizer.chat_template),
        bool(tools),
        tuple((m["role"], bool(m.get("tool_calls")), bool(m.get("content"))) for m in messages),
    )
    ways = (list(messages), *(alternating(messages, fold_system=fold) for fold in (False, True)))
    if shape in known:
        return ways[known[shape]]
    first = refusal(ways[0])
    for number, turns in enumerate(ways):
        if first is None or (number and refusal(turns) is None):
            if len(known) >= MOST_SHAPES:
                known.clear()
            known[shape] = number
            return turns
    assert first is not None
    raise first


def alternating(messages: Sequence[Message], *, fold_system: bool) -> list[Message]:
    """Messages of which no two neighbours have one role; with ``fold_system``, system messages are the user's.

    Messages with tool calls, or of tools, stay as they are.
    """
    found: list[Message] = []
    for message in messages:
        role = "user" if fold_system and message["role"] == "system" else message["role"]
        taken = {**message, "role": role}
        before = found[-1] if found else None
        plain = role in ("system", "user", "assistant") and not message.get("tool_calls")
        if before is not None and plain and before["role"] == role and not before.get("tool_calls"):
            parts = filter(None, (before["content"], taken["content"]))
            found[-1] = {**before, "content": BETWEEN.join(parts)}
        else:
            found.append(taken)
    return found
