"""Variables of a chat template, such as ``enable_thinking``, reach it from both frameworks."""

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from mplus import UnknownNameError
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from mplus_integrations.llama_index import MPlusLLM
from tests.conftest import TINY
from tests.test_chat_template import THINKING

MODEL = tiny_model(memory=TINY)
MODEL.tokenizer.chat_template = THINKING
OFF = {"enable_thinking": False}


def langchain_asks(own: Any = None, **options: Any) -> int:
    chat = MPlusChat(model=MODEL, max_tokens=1, chat_template_kwargs=own)
    return chat.invoke("Hello.", **options).usage_metadata["input_tokens"]  # type: ignore[index]


def llama_index_asks(own: Any = None, **options: Any) -> int:
    llm = MPlusLLM(model=MODEL, max_tokens=1, chat_template_kwargs=own)
    return llm.chat([ChatMessage(content="Hello.")], **options).raw["usage"]["prompt_tokens"]


@pytest.mark.parametrize("asks", [langchain_asks, llama_index_asks])
def test_variables_of_a_template_reach_it(asks: Any) -> None:
    usual = asks()
    assert asks(OFF) == asks(chat_template_kwargs=OFF) == usual + len("<think>\n\n</think>")
    assert asks(OFF, chat_template_kwargs={"enable_thinking": True}) == usual, "a call counts before the object"
    with pytest.raises(UnknownNameError, match="enable_thinking"):
        asks(chat_template_kwargs={"enable_thought": False})
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        asks(chat_template_kwargs=["enable_thinking"])
