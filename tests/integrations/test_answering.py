"""What an answer says of itself, the same in both frameworks."""

from typing import Any

import pytest

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from mplus_integrations.llama_index import MPlusLLM
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY.model_copy(update={"recalled_tokens": 128}))


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_the_source_that_answers_is_named_before_one_that_was_merely_read(framework: str) -> None:
    llm = MPlusChat(model=MODEL, max_tokens=1) if framework == "langchain" else MPlusLLM(model=MODEL, max_tokens=1)
    llm.memorize("Invoices are paid to account 1111, says Biscuit.", source="notes")
    llm.memorize("A long text about pears, plums and figs, without end. " * 9, source="handbook")
    asked = "To which account are invoices paid, says Biscuit?"
    answer: Any = llm.invoke(asked) if isinstance(llm, MPlusChat) else llm.complete(asked)
    found = (answer.response_metadata if framework == "langchain" else answer.raw)["recalled"]
    assert [one["source"] for one in found] == ["notes", "handbook"]
    assert found[0]["pool"] == "long_term" and found[1]["share"] > found[0]["share"]
    assert found[0]["relevance"] > found[1]["relevance"]
