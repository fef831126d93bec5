"""LlamaIndex's OpenAILike, unmodified, against a server that really serves."""

from typing import Any, Literal

import pytest

pytest.importorskip("llama_index.llms.openai_like", reason="needs the package llama-index-llms-openai-like")

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

import mplus
from tests.integrations.server.conftest import MODEL, Served

ASKED = [ChatMessage(content="What is my dog called?")]
TEXT = "My dog is called Biscuit. " * 4


def client(served: Served, **more: Any) -> OpenAILike:
    return OpenAILike(
        **{
            "model": MODEL,
            "api_base": f"{served.url}/v1",
            "api_key": "anna",
            "is_chat_model": True,
            "is_function_calling_model": True,
            "context_window": 4096,
            "max_tokens": 8,
            "max_retries": 0,
            "temperature": 0.0,
            **more,
        }
    )


@pytest.fixture
def with_dog(served: Served) -> Served:
    with served.client() as http:
        http.post("/v1/memories/bob/write", json={"text": TEXT, "source": "dog"}).raise_for_status()
    return served


def test_answers_are_those_of_the_model_whole_streamed_and_async(with_dog: Served, tiny: mplus.MPlus) -> None:
    memory = tiny.new_memory()
    tiny.write(memory, TEXT, source="dog")
    expected = tiny.generate(memory, [{"role": "user", "content": ASKED[0].content}], max_new_tokens=8).text
    llm = client(with_dog, additional_kwargs={"extra_body": {"memory": "bob"}})
    whole = llm.chat(ASKED)
    assert whole.message.content == expected and whole.raw.mplus["recalled"][0]["source"] == "dog"
    *_, last = llm.stream_chat(ASKED)
    assert last.message.content == expected


async def test_answers_are_the_same_when_they_are_awaited(with_dog: Served) -> None:
    llm = client(with_dog, additional_kwargs={"extra_body": {"memory": "bob"}})
    assert (await llm.achat(ASKED)).message.content == llm.chat(ASKED).message.content
    streamed = [piece async for piece in await llm.astream_chat(ASKED)]
    assert streamed[-1].message.content == llm.chat(ASKED).message.content


def test_a_text_is_continued_by_the_completion_endpoint(served: Served) -> None:
    llm = client(served, is_chat_model=False)
    whole = llm.complete("Once upon a time").text
    *_, last = llm.stream_complete("Once upon a time")
    assert whole and last.text == whole


def test_tools_are_called_and_objects_have_their_form(served: Served) -> None:
    class Dog(BaseModel):
        """A dog."""

        name: Literal["Biscuit", "Waffle"]

    def weather(city: Literal["Graz", "Trieste"]) -> str:
        """The weather of a city."""
        return f"Sunny in {city}."

    llm = client(served, max_tokens=300)
    answer = llm.chat_with_tools([FunctionTool.from_defaults(weather)], ASKED[0], tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "weather" and call.tool_kwargs["city"] in ("Graz", "Trieste")
    found = llm.as_structured_llm(Dog).chat(ASKED)
    assert found.raw.name in ("Biscuit", "Waffle")
