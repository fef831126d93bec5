"""The unmodified client of OpenAI, and curl, against a server that really serves."""

import json
import shutil
import subprocess
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="needs the package openai")

import mplus
from tests.integrations.server.conftest import MODEL, Served, Serving

QUESTION: Any = [{"role": "user", "content": "What is my dog called?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Trieste", "Graz"]}}, "required": ["city"]},
    },
}
DOG: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "dog",
        "schema": {"type": "object", "properties": {"name": {"enum": ["Biscuit", "Waffle"]}}, "required": ["name"]},
    },
}


def client(served: Served, key: str = "anna", **more: Any) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0, timeout=60, **more)


def alone(model: mplus.MPlus, *texts: str, tokens: int = 8) -> str:
    """What the model itself answers with these texts in memory."""
    memory = model.new_memory()
    for text in texts:
        model.write(memory, text)
    return model.generate(memory, QUESTION, max_new_tokens=tokens).text


def test_an_answer_is_that_of_the_model_with_usage_and_what_was_recalled(served: Served, tiny: mplus.MPlus) -> None:
    text = "My dog is called Biscuit. " * 8
    with served.client("anna") as http:
        name = served.chat("Hello").json()["mplus"]["memory"]
        assert name == "default"
        assert http.post("/v1/memories/anna/write", json={"text": text, "source": "dog"}).status_code == 200
    answer = client(served).chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=8, extra_body={"memory": "anna"}
    )
    assert answer.choices[0].message.content == alone(tiny, text)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert [one["source"] for one in answer.mplus["recalled"]] == ["dog"]
    assert answer.mplus["memory"] == answer.mplus["recalled"][0]["memory"] == "anna" and answer.mplus["used_memory"]


def test_a_stream_is_the_same_answer_piece_by_piece_and_ends_with_usage(served: Served) -> None:
    whole = client(served).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8)
    chunks = list(
        client(served).chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_begins_with_what_it_reads_where_that_is_asked_for(served: Served) -> None:
    with served.client() as http:
        http.post("/v1/memories/anna/write", json={"text": "My dog is called Biscuit.", "source": "dog"})
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 4}
    asked = {"memory": "anna", "passages": True}
    chunks = list(client(served).chat.completions.create(stream=True, extra_body=asked, **ask))
    begun = next(n for n, chunk in enumerate(chunks) if getattr(chunk, "mplus", None))
    assert all(not chunk.choices[0].delta.content for chunk in chunks[: begun + 1]), "before the first text"
    told = chunks[begun].mplus
    assert [one["source"] for one in told["recalled"]] == ["dog"] and told["used_memory"]
    assert told["passages"][0]["sentences"] == ["My dog is called Biscuit."]
    whole = client(served).chat.completions.create(extra_body=asked, **ask)
    assert whole.mplus["passages"] == told["passages"] == chunks[-1].mplus["passages"]
    plain = client(served).chat.completions.create(extra_body={"memory": "anna"}, **ask)
    assert "passages" not in plain.mplus and plain.choices[0].message.content == whole.choices[0].message.content


def test_seed_stop_and_temperature_are_those_of_the_model(served: Served) -> None:
    ask = lambda **more: (
        client(served)
        .chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12, **more)
        .choices[0]
        .message.content
    )
    drawn = {ask(temperature=1.5, seed=seed) for seed in (1, 2, 3)}
    assert len(drawn) > 1 and ask(temperature=1.5, seed=1) in drawn
    text = ask()
    middle = text[len(text) // 2]
    assert ask(stop=[middle]) == text.partition(middle)[0]


def test_a_tool_is_called_streamed_and_whole_and_its_result_is_taken(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "tools": [WEATHER], "tool_choice": "required"}
    choice = client(served).chat.completions.create(messages=QUESTION, **ask).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Trieste", "Graz")
    chunks = list(client(served).chat.completions.create(messages=QUESTION, stream=True, **ask))
    (streamed,) = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert streamed.index == 0 and streamed.function.model_dump() == call.function.model_dump()
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    history = [*QUESTION, choice.message.model_dump(), result]
    after = client(served).chat.completions.create(messages=history, **{**ask, "tool_choice": "none"})
    assert after.choices[0].message.tool_calls is None


def test_answers_follow_a_response_format(served: Served) -> None:
    ask = lambda form: client(served).chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=60, response_format=form
    )
    assert json.loads(ask(DOG).choices[0].message.content)["name"] in ("Biscuit", "Waffle")
    assert ask({"type": "json_object"}).choices[0].message.content.startswith("{")
    assert ask({"type": "text"}).choices[0].message.content


def test_log_probabilities_are_those_of_each_token(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    answer = client(served).chat.completions.create(**ask)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob < 0 for token in tokens)
    *_, last = client(served).chat.completions.create(stream=True, **ask)
    assert [token.logprob for token in last.choices[0].logprobs.content] == [token.logprob for token in tokens]


def test_penalties_and_biases_change_what_is_said(served: Served) -> None:
    ask = lambda **more: client(served).chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=6, logprobs=True, **more
    )
    banned = ask().choices[0].logprobs.content[0].token
    assert ask(logit_bias={str(ord("z") - 33): 100}).choices[0].message.content == "zzzzzz"
    assert ask(logit_bias={str(n): -100 for n in range(200)}).choices[0].logprobs.content[0].token != banned


def test_a_text_is_continued(served: Served) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 6}
    whole = client(served).completions.create(logprobs=2, **ask)
    assert whole.object == "text_completion" and whole.usage.completion_tokens <= 6
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    pieces = client(served).completions.create(stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text


def test_models_are_listed_and_others_are_not_found(serving: Serving) -> None:
    with serving(aliases=("gpt-4o-mini",)) as served:
        assert [model.id for model in client(served).models.list()] == [MODEL, "gpt-4o-mini"]
        assert client(served).models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
        answer = client(served).chat.completions.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=2)
        assert answer.model == "gpt-4o-mini"
        with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-9'"):
            client(served).chat.completions.create(model="gpt-9", messages=QUESTION)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperture": 1}, "temperture"),
        ({"n": 2}, "n=2: "),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "expected text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text only"),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, "tool"),
        ({"tool_choice": "required"}, "without tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "object", "minLength": "x"}},
                }
            },
            "",
        ),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"memory": "../bob"}, "memory"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_is_wrong_is_a_bad_request_that_says_what(served: Served, wrong: dict[str, Any], said: str) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 2}
    with served.client() as http:
        answer = http.post("/v1/chat/completions", json=ask | wrong)
    assert answer.status_code in (200, 400) if not said else answer.status_code == 400, answer.text
    if said:
        assert said in answer.json()["detail"] and answer.json()["error"]["message"] == answer.json()["detail"]
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_conversation_that_begins_like_an_earlier_one_forgets_nothing_of_it(served: Served) -> None:
    begin = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    first = [*begin, {"role": "user", "content": "I live in Graz."}, {"role": "assistant", "content": "Fine."}]
    ask = lambda messages: served.chat("", messages=messages, memory="anna", prompt_turns=0)
    assert ask([*first, *QUESTION]).status_code == 200
    assert ask(begin[:1]).status_code == ask([*begin, *QUESTION]).status_code == 200
    with served.client() as http:
        sources = http.get("/v1/memories/anna/sources?texts=true").json()["sources"]
    assert "User: I live in Graz." in [text for source in sources for text in source["texts"]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_events(served: Served) -> None:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "max_tokens": 3, "stream": True})
    command = ["curl", "-sSN", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n\n")
    assert all(line.startswith("data: ") for line in lines if line)
    assert lines[-2] == "data: [DONE]"
