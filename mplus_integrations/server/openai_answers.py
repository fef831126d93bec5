"""Answers as OpenAI's clients read them, whole or as a stream of server-sent events."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate
from typing import Any
from uuid import uuid4

from mplus_integrations.answering import Answer, Piece
from mplus_integrations.server.problems import Problem, body_of
from mplus_integrations.server.processors import NoteTokens, TokenNote, token_entry
from mplus_integrations.server.routes import as_json

Json = dict[str, Any]
MARK = "text"
"""Stands for the text of a piece while its envelope is made."""


class Shape:
    """The form of the answers to one request.

    Args:
        model: The name by which the client called the model.
        memory: The memory that was read.
        tokenizer: Decodes tokens.
        notes: What was noted of the tokens; None: log probabilities were not asked for.
        is_chat: Whether it was a conversation, or a text to continue.
        has_usage: Whether a stream ends with the numbers of tokens.
    """

    def __init__(
        self, model: str, memory: str, tokenizer: Any, notes: NoteTokens | None, *, is_chat: bool, has_usage: bool
    ) -> None:
        self._model, self._memory, self._tokenizer, self._notes = model, memory, tokenizer, notes
        self._is_chat, self._has_usage = is_chat, has_usage
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex[:24]}"
        self._created = int(time.time())
        # Every piece has the same envelope. The mark is the last string in it: the text of a choice comes last.
        self._before, self._after = _event(self.chunk(MARK)).rsplit(f'"{MARK}"', 1)

    def whole(self, answer: Answer) -> Json:
        """A whole answer."""
        text = answer.text
        if self._is_chat:
            message: Json = {"role": "assistant", "content": text, "refusal": None}
            if answer.calls:
                message |= {"content": text or None, "tool_calls": [_call(one) for one in answer.calls]}
            choice: Json = {"message": message}
        else:
            choice = {"text": text}
        choice |= {"index": 0, "logprobs": self._logprobs(answer), "finish_reason": finish_reason(answer)}
        return self._object("chat.completion" if self._is_chat else "text_completion", [choice]) | {
            "usage": usage(answer),
            "mplus": self._about(answer),
        }

    def chunk(self, text: str, *, is_first: bool = False) -> Json:
        """A piece of an answer."""
        if isinstance(text, Piece) and text.read is not None:
            return self.chunk(str(text)) | {"mplus": {"memory": self._memory, **text.read}}
        if not self._is_chat:
            return self._chunk({"text": text})
        return self._chunk({"delta": ({"role": "assistant"} if is_first else {}) | {"content": text}})

    def event(self, text: str) -> str:
        """A piece of an answer as a server-sent event."""
        if isinstance(text, Piece) and text.read is not None:
            return _event(self.chunk(text))
        return f"{self._before}{json.dumps(text, ensure_ascii=False)}{self._after}"

    def end(self, answer: Answer) -> Iterator[Json]:
        """The last pieces: text that was held back, calls, why it ended, and numbers of tokens."""
        if answer.rest:
            yield self.chunk(answer.rest)
        if answer.calls:
            calls = [{"index": n, **_call(one)} for n, one in enumerate(answer.calls)]
            yield self._chunk({"delta": {"tool_calls": calls}})
        last: Json = {"delta": {}} if self._is_chat else {"text": ""}
        last |= {"logprobs": self._logprobs(answer), "finish_reason": finish_reason(answer)}
        yield self._chunk(last) | {"mplus": self._about(answer)}
        if self._has_usage:
            yield self._object(self._kind, []) | {"usage": usage(answer)}

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(self, choice: Json) -> Json:
        return self._object(self._kind, [{"index": 0, "finish_reason": None, "logprobs": None, **choice}])

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    def _about(self, answer: Answer) -> Json:
        names = ("recalled", "prefix_tokens", "used_memory", "confidence", "is_calibrated", "abstained")
        passages = {name: answer.about[name] for name in ("passages",) if name in answer.about}
        return {"memory": self._memory, **{name: answer.about[name] for name in names}, **passages}

    def _logprobs(self, answer: Answer) -> Json | None:
        if self._notes is None:
            return None
        notes = self._notes.notes(answer.generation.token_ids)
        if self._is_chat:
            return {"content": [self._entry(note) for note in notes], "refusal": None}
        return self._legacy(notes)

    def _entry(self, note: TokenNote) -> Json:
        likeliest = [token_entry(self._tokenizer, *one) for one in note.likeliest]
        return token_entry(self._tokenizer, note.token, note.log_probability) | {"top_logprobs": likeliest}

    def _legacy(self, notes: list[TokenNote]) -> Json:
        entries = [self._entry(note) for note in notes]
        ends = list(accumulate(len(entry["token"]) for entry in entries))
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
            "text_offset": [0, *ends][: len(ends)],
        }


async def events(shape: Shape, first: str | Answer, pieces: AsyncIterator[str | Answer]) -> AsyncIterator[str]:
    """A streamed answer as server-sent events. One that was cut off ends with an error, not as if it were whole."""
    yield _event(shape.chunk("", is_first=True))
    piece = first
    while isinstance(piece, str):
        yield shape.event(piece)
        piece = await anext(pieces)
    check_whole(piece)
    for chunk in shape.end(piece):
        yield _event(chunk)
    yield "data: [DONE]\n\n"


def error_event(problem: Problem) -> str:
    """What went wrong after the first byte."""
    return _event({"error": body_of(problem)["error"]})


def check_whole(answer: Answer) -> None:
    """Refuse an answer that was cut off.

    Raises:
        Problem: It was not finished in time, or the server stops (503).
    """
    if answer.generation.finish_reason == "cancelled":
        raise Problem(503, "cut_off", "The answer was cut off: it took too long, or the server is stopping.")


def finish_reason(answer: Answer) -> str:
    """Why an answer ended, in OpenAI's words."""
    return "tool_calls" if answer.calls else answer.generation.finish_reason


def usage(answer: Answer) -> Json:
    """Numbers of tokens. What is read from memory is not part of the prompt."""
    made = answer.generation
    return {
        "prompt_tokens": made.prompt_tokens,
        "completion_tokens": made.completion_tokens,
        "total_tokens": made.prompt_tokens + made.completion_tokens,
    }


def _call(numbered: tuple[str, Any]) -> Json:
    number, call = numbered
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": number, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _event(data: Json) -> str:
    return f"data: {as_json(data)}\n\n"
