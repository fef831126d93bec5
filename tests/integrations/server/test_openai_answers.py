"""The form of answers, apart from HTTP."""

import json
from typing import Any

import pytest

for needed in ("fastapi", "prometheus_client", "pydantic_settings"):
    pytest.importorskip(needed, reason=f"needs the extra serve: {needed} is not installed")

from mplus_integrations.answering import Piece
from mplus_integrations.server.openai_answers import MARK, Shape


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("model", ["tiny", MARK, f'a "{MARK}"'])
@pytest.mark.parametrize("text", ["", " dog", f'"{MARK}"', 'a\n"b"\\', "Žlutý 🐕"])
def test_an_event_holds_the_chunk_of_its_text(text: str, model: str, is_chat: bool) -> None:
    shape = Shape(model, "anna", None, None, is_chat=is_chat, has_usage=False)
    event = shape.event(Piece.of(text, (3, 1)))
    assert event.startswith("data: ") and event.endswith("\n\n") and event.count("\n") == 2
    assert json.loads(event.removeprefix("data: ")) == shape.chunk(text)


def test_the_first_event_tells_what_is_read() -> None:
    piece, read = Piece.of("", (3, 0)), {"recalled": [{"source": "dog"}]}
    piece.read = read
    shape = Shape("tiny", "anna", None, None, is_chat=True, has_usage=False)
    told: dict[str, Any] = json.loads(shape.event(piece).removeprefix("data: "))
    assert told["mplus"] == {"memory": "anna", **read}
