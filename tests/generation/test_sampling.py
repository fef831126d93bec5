import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.generation.sampling import Sampler, SamplingOptions, SamplingParams, TextStream
from mplus.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
CPU = torch.device("cpu")


@given(st.text(max_size=60), st.lists(st.text(alphabet="abé😀 \n", min_size=1, max_size=5), max_size=3))
def test_pieces_join_to_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    stream = TextStream(TOKENIZER, stop)
    pieces: list[str] = []
    for token in TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
        pieces.append(stream.push(token))
        assert not any(s in "".join(pieces) for s in stop)
        if stream.finished:
            break
    if not stream.finished:
        pieces.append(stream.finish())
    # The first stop string to be complete wins.
    done = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    expected = text
    if done is not None:
        expected = text[: min(text[:done].find(s) for s in stop if s in text[:done])]
    assert "".join(pieces) == expected
    assert stream.finished is (done is not None)


def test_half_a_character_is_held_back() -> None:
    stream = TextStream(TOKENIZER)
    pushed = [stream.push(t) for t in TOKENIZER("é😀", add_special_tokens=False)["input_ids"]]
    assert pushed == ["", "é", "", "", "", "😀"]


def test_what_could_begin_a_stop_string_is_held_back_until_it_cannot() -> None:
    stream = TextStream(TOKENIZER, ["STOP"])
    ids = TOKENIZER("aSTOsSTOP!", add_special_tokens=False)["input_ids"]
    assert [stream.push(t) for t in ids[:5]] == ["a", "", "", "", "STOs"]
    assert [stream.push(t) for t in ids[5:9]] == ["", "", "", ""]
    assert stream.finished


def test_greedy_is_the_argmax() -> None:
    logits = torch.randn(50)
    assert Sampler(SamplingParams(), [], CPU)(logits, []) == int(logits.argmax())


def test_a_seed_gives_the_same_tokens_whatever_else_runs() -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    rows = torch.randn(20, 50)
    first, second = Sampler(params, [], CPU), Sampler(params, [], CPU)
    one = [first(row, []) for row in rows]
    torch.rand(7)
    assert [second(row, []) for row in rows] == one
    assert len(set(one)) > 5


def test_top_k_and_top_p_limit_the_choice() -> None:
    logits = torch.tensor([5.0, 4.9, 1.0, 0.5, 0.1])
    for settings, allowed in (({"top_k": 2}, {0, 1}), ({"top_p": 0.9}, {0, 1}), ({"top_k": 1}, {0})):
        sampler = Sampler(SamplingParams(temperature=2.0 if "top_k" in settings else 1.0, seed=0, **settings), [], CPU)
        assert {sampler(logits, []) for _ in range(60)} <= allowed


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [0], CPU)
    assert sampler(logits, []) == 1
    assert sampler(logits, [1]) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"stop": ["x", ""]}, "empty string"),
        ({"temprature": 1.0}, r"does not take 'temprature'\. Use temperature\. It takes: abstain_below, .*, top_p"),
    ],
)
def test_bad_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingParams(**settings)


def test_none_stands_for_the_default() -> None:
    assert SamplingParams(**dict.fromkeys(SamplingParams.model_fields)) == SamplingParams()


def test_keyword_arguments_and_fields_have_the_same_names() -> None:
    assert list(SamplingOptions.__annotations__) == list(SamplingParams.model_fields)


def test_one_stop_string_may_be_given_alone() -> None:
    assert SamplingParams(stop="END").stop == ("END",)
