"""Puts recalled text into a prompt, as the model was measured to read it best."""

from collections.abc import Mapping, Sequence
from typing import Any

from mplus.generation.prompt import Prompt, PromptLike, TemplateOptions, Tools, encode_prompt
from mplus.inert import encode_inert
from mplus.recall.texts import Piece

INSTRUCTION = "Answer briefly, from the text above."
"""Stands behind the text. What else was tried with a small backbone did no better (docs/lab/recall.md)."""


def text_of(tokenizer: Any, pieces: Sequence[Piece]) -> str:
    """What pieces say, in their order, a text a line."""
    said = (tokenizer.decode(list(ids)).strip() for piece in pieces for ids in piece.texts)
    return "\n".join(filter(None, said))


def encode_told(
    tokenizer: Any,
    prompt: PromptLike,
    text: str,
    tools: Tools | None = None,
    options: TemplateOptions = None,
) -> Prompt:
    """Token ids of a prompt that has a recalled text in it.

    In a chat it stands in the system message, else before the prompt. Control tokens in it are encoded as plain text,
    as those of a user are.
    """
    if isinstance(prompt, Prompt):
        begin = prompt.query[0]
        told = encode_inert(tokenizer, f"{text}\n\n")
        ids = (*prompt.input_ids[:begin], *told, *prompt.input_ids[begin:])
        return Prompt(ids, (begin + len(told), prompt.query[1] + len(told)))
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, f"{text}\n\n{prompt}")
    return encode_prompt(tokenizer, with_told(prompt, text), tools=tools, options=options)


def with_told(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Messages with a recalled text in the system message, behind what that says already."""
    first, *others = messages
    told = f"{text}\n\n{INSTRUCTION}"
    if first.get("role") != "system":
        return [{"role": "system", "content": told}, *map(dict, messages)]
    return [{**first, "content": f"{first['content']}\n\n{told}"}, *map(dict, others)]
