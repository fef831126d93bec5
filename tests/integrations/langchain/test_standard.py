"""LangChain's own integration suite, with nothing deleted.

It runs on tiny random weights: what they say makes no sense, but constrained decoding gives every call and
every structured answer its form. Tests that ask for sense run on the default model. Random bytes seldom end by themselves:
the longer an answer is, the likelier are its end and what closes a string, a list or an object.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from mplus import MPlus
from mplus.testing import tiny_model
from mplus_integrations import MPlusChat
from tests.conftest import TINY
from tests.integrations.langchain.conftest import nothing_is_deleted

MODEL = tiny_model(1, memory=TINY)
ENDS = [MODEL.tokenizer.eos_token_id, *MODEL.tokenizer.convert_tokens_to_ids(['"', "]", "}"])]
LIKELIER = 0.1
"""What each token adds to the logits of the ends; those of a tiny model differ by about 1."""


def ending(tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """A logits processor."""
    logits = logits.clone()
    logits[ENDS] += LIKELIER * len(tokens)
    return logits


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model, for calls that name one."""
    folder = tmp_path_factory.mktemp("models") / "other"
    tiny_model(2, memory=TINY).save_pretrained(folder)
    return folder


class TestStandardIntegration(ChatModelIntegrationTests):
    want_sense = (
        "test_tool_calling",
        "test_tool_calling_async",
        "test_agent_loop",
        "test_unicode_tool_call_integration",
    )

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        settings = self.chat_model_params
        if request.function.__name__ in self.want_sense:
            settings = {"model": request.getfixturevalue("default_model"), "max_tokens": 100}
        return MPlusChat(**settings, **(getattr(request, "param", None) or {}))

    @pytest.fixture(autouse=True)
    def _answers_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = MPlus.stream

        def stream(self: MPlus, *arguments: Any, processors: Sequence[Any] | None = None, **options: Any) -> Any:
            first = [ending] if len(self.tokenizer) == len(MODEL.tokenizer) else []  # of the default model, nothing
            return real(self, *arguments, processors=[*first, *(processors or ())], **options)

        monkeypatch.setattr(MPlus, "stream", stream)

    @pytest.fixture(autouse=True)
    def _other_model(self, other_model: Path) -> None:
        self.other_model = other_model

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return MPlusChat

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": MODEL, "max_tokens": 900}

    @property
    def model_override_value(self) -> str:
        return str(self.other_model)

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"max_tokens": 2500}  # random bytes need many tokens to fill two strings

    @pytest.mark.xfail(
        reason="free to choose, the default model answers in words instead of calling: it passes 0 of 21 runs "
        "(greedy and 20 sampled, benchmarks/langchain_tools.py); the other tests that ask for sense pass greedily"
    )
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)


def test_acceptance_1_nothing_of_the_integration_suite_is_deleted_and_what_may_fail_says_why() -> None:
    nothing_is_deleted(TestStandardIntegration)
