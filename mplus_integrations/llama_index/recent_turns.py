"""Which of the latest turns of a conversation stand in a prompt."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import MessageRole, ToolCallBlock

from mplus import MPlus, prompt_start, question_place
from mplus_integrations.llama_index.messages import ROLES, Turn, spoken
from mplus_integrations.settings import PromptTurns, turns_in_prompt

TOKEN_LIMIT = 1024
"""Most tokens of recent turns for a model that takes as many as fit."""
MESSAGE_TOKENS = 4
"""Approximate number of tokens that a chat template adds to a message."""


class RecentTurns(NamedTuple):
    """How many turns stand in the prompts of a model.

    Attributes:
        model: The model, which counts tokens.
        prompt_turns: How many before the question; "all": as many as ``token_limit`` allows. None: the model's own
            number, and "all" if ``token_limit`` is given.
        token_limit: Most tokens of them; None: 1024, and only where turns are not counted.
    """

    model: MPlus
    prompt_turns: PromptTurns | None
    token_limit: int | None

    def start(self, turns: Sequence[Turn]) -> int:
        """Index of the first turn that stands in the prompt."""
        everything = self.prompt_turns is None and self.token_limit is not None
        wanted = None if everything else turns_in_prompt(self.prompt_turns, self.model)
        if wanted is None:
            return self.start_by_tokens(turns)
        chat: list[dict[str, Any]] = [{"role": ROLES[turn.role]} for turn in turns]
        calls = any(isinstance(block, ToolCallBlock) for block in turns[-1].blocks)
        # After a plain answer the question is still to come.
        end = len(turns) if chat[-1]["role"] == "assistant" and not calls else question_place(chat)
        start = prompt_start(chat, end, wanted)
        return start if self.token_limit is None else min(max(start, self.start_by_tokens(turns)), end)

    def start_by_tokens(self, turns: Sequence[Turn]) -> int:
        """Index of the first recent turn; it is a question, so that no answer or tool result is separated from it."""
        tokenizer, used, start = self.model.tokenizer, 0, len(turns)
        for turn in reversed(turns):
            used += len(tokenizer(spoken(turn), add_special_tokens=False)["input_ids"]) + MESSAGE_TOKENS
            if used > (self.token_limit or TOKEN_LIMIT):
                break
            start -= 1
        if start == 0:
            return 0
        asked = [n for n, turn in enumerate(turns) if turn.role == MessageRole.USER]
        return next((n for n in asked if n >= start), asked[-1] if asked else min(start, len(turns) - 1))
