"""The text of a turn in memory, and which turns stand in the prompt."""

from typing import Any

import pytest

from mplus import prompt_start, question_place, turn_text

CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": "I live in Graz."}, "User: I live in Graz."),
        ({"role": "assistant", "content": "How nice!"}, "Assistant: How nice!"),
        ({"role": "tool", "content": "three"}, "Tool: three"),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            'Assistant: [{"name": "add", "arguments": {"a": 1}}]',
        ),
        ({"role": "assistant", "content": "I add.", "tool_calls": [CALL]}, "Assistant: I add."),
        ({"role": "assistant", "content": " "}, ""),
        ({"role": "system", "content": "Be brief."}, ""),
    ],
)
def test_a_turn_has_one_text(message: dict[str, Any], text: str) -> None:
    assert turn_text(message) == text


def turns(roles: str) -> list[dict[str, str]]:
    names = {"u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[role], "content": "x"} for role in roles]


@pytest.mark.parametrize(("roles", "place"), [("", 0), ("u", 0), ("uau", 2), ("uauat", 2), ("a", 0), ("aa", 1)])
def test_the_last_user_message_is_the_question(roles: str, place: int) -> None:
    assert question_place(turns(roles)) == place


@pytest.mark.parametrize(
    ("roles", "prompt_turns", "start"),
    [("uau", 0, 2), ("uau", 1, 1), ("uau", 9, 0), ("uau", None, 0), ("uatau", 2, 3), ("uatau", 3, 1), ("u", 0, 0)],
)
def test_the_latest_turns_stand_in_the_prompt_and_no_result_without_its_call(
    roles: str, prompt_turns: int | None, start: int
) -> None:
    said = turns(roles)
    assert prompt_start(said, question_place(said), prompt_turns) == start
