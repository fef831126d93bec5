"""A model that says what a test tells it to."""

from typing import Any

import pytest

import mplus


class Saying:
    """Makes the model answer with given texts, one after the other: its form is enforced as for a tool call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: mplus.MPlus) -> None:
        self.texts: list[str] = []
        real = model.stream

        def stream(*args: Any, **kwargs: Any) -> Any:
            if self.texts:
                text = self.texts.pop(0)
                kwargs["constraint"] = mplus.Constraint("start: " + _quoted(text))
                kwargs["max_new_tokens"] = len(text.encode()) + 1
            return real(*args, **kwargs)

        monkeypatch.setattr(model, "stream", stream)

    def __call__(self, *texts: str) -> None:
        self.texts += texts


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"\n'
