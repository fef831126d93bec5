import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.generation.sampling import Sampler, SamplingOptions, SamplingParams, TextStream, choose
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


NUMBERS = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "timeout",
    "abstain_below",
    "decline_threshold",
)


def next_tokens(samplers: list[Sampler], logits: torch.Tensor, generated: list[int] | None = None) -> list[int]:
    scores = [sampler.scores(row, generated or []) for sampler, row in zip(samplers, logits, strict=True)]
    return [c.token for c in choose(logits, scores, [sampler.generator for sampler in samplers], with_entropy=False)]


def next_token(sampler: Sampler, logits: torch.Tensor, generated: list[int] | None = None) -> int:
    return next_tokens([sampler], logits[None], generated)[0]


def test_greedy_is_the_argmax() -> None:
    logits = torch.randn(50)
    assert next_token(Sampler(SamplingParams(), [], CPU), logits) == int(logits.argmax())


def test_a_seed_gives_the_same_tokens_whatever_else_runs() -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    rows = torch.randn(20, 50)
    first, second = Sampler(params, [], CPU), Sampler(params, [], CPU)
    one = [next_token(first, row) for row in rows]
    torch.rand(7)
    assert [next_token(second, row) for row in rows] == one
    assert len(set(one)) > 5


SETTINGS: list[dict] = [{"temperature": 0.7}, {}, {"temperature": 1.5, "top_k": 9}, {"repetition_penalty": 1.4}]
SETTINGS += [{"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.2}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_chooses_for_each_row_what_it_would_choose_alone(dtype: torch.dtype) -> None:
    def samplers() -> list[Sampler]:
        return [Sampler(SamplingParams(seed=n, **given), [3, 4], CPU) for n, given in enumerate(SETTINGS)]

    together, alone, answer = samplers(), samplers(), list[int]()
    for step in range(12):
        logits = torch.randn(len(SETTINGS), 40, generator=torch.Generator().manual_seed(step)).to(dtype)
        chosen = next_tokens(together, logits, answer)
        assert chosen == [next_token(sampler, row, answer) for sampler, row in zip(alone, logits, strict=True)]
        answer.append(chosen[0])


def test_a_sampled_token_is_that_of_multinomial() -> None:
    generator, sampler = torch.Generator().manual_seed(3), Sampler(SamplingParams(temperature=1.0, seed=3), [], CPU)
    for logits in torch.randn(20, 300):
        expected = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        assert next_token(sampler, logits) == int(expected)


def test_the_log_probability_and_entropy_are_those_before_settings() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0], [3.0, 2.0, 1.0]])
    sampler = Sampler(SamplingParams(temperature=0.01, seed=0), [], CPU)
    scores = [logits[0], sampler.scores(logits[1], [])]
    chosen = choose(logits, scores, [None, sampler.generator], with_entropy=True)
    expected = torch.distributions.Categorical(logits=logits)
    assert [c.token for c in chosen] == [2, 0]
    assert [c.log_probability for c in chosen] == pytest.approx(expected.log_prob(torch.tensor([2, 0])).tolist())
    assert [c.entropy for c in chosen] == pytest.approx(expected.entropy().tolist())


def test_probabilities_that_are_no_numbers_are_told_of_their_row_alone() -> None:
    samplers = [Sampler(SamplingParams(temperature=1.0, seed=n), [], CPU) for n in range(3)]
    logits = torch.zeros(3, 4)
    logits[1] = math.nan
    tokens = next_tokens(samplers, logits)
    assert tokens[1] < 0 <= min(tokens[0], tokens[2])


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-6])
def test_a_temperature_of_almost_zero_takes_the_likeliest_token(temperature: float) -> None:
    logits = torch.tensor([90.0, 90.5, -3.0])
    assert next_token(Sampler(SamplingParams(temperature=temperature, seed=0), [], CPU), logits) == 1


@pytest.mark.parametrize("settings", [{"temperature": 1e-5}, {"temperature": 1e6}, {"repetition_penalty": 1e6}])
@pytest.mark.parametrize("ruled_out", [0.0, -math.inf])
def test_settings_at_their_limits_give_numbers(settings: dict, ruled_out: float) -> None:
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 0, **settings}), [0, 1], CPU)
    assert next_token(sampler, torch.tensor([90.0, -90.0, ruled_out])) in {0, 1, 2}


def test_top_k_and_top_p_limit_the_choice() -> None:
    logits = torch.tensor([5.0, 4.9, 1.0, 0.5, 0.1])
    for settings, allowed in (({"top_k": 2}, {0, 1}), ({"top_p": 0.9}, {0, 1}), ({"top_k": 1}, {0})):
        sampler = Sampler(SamplingParams(temperature=2.0 if "top_k" in settings else 1.0, seed=0, **settings), [], CPU)
        assert {next_token(sampler, logits) for _ in range(60)} <= allowed


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.tensor([1.0, 0.9, 0.8])
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), [0], CPU)
    assert next_token(sampler, logits) == 1
    assert next_token(sampler, logits, [1]) == 2


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
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"temperature": 1e300}, "temperature"),
        ({"seed": 2**64}, "seed"),
        ({"stop_token_ids": [True]}, r"stop_token_ids.*\n.*expected a number, not True"),
        *(({name: True}, rf"{name}.*\n.*") for name in NUMBERS),
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


def test_the_schema_has_the_bounds_of_numbers() -> None:
    fields = SamplingParams.model_json_schema()["properties"]
    assert fields["temperature"]["minimum"] == 0 and fields["max_new_tokens"]["minimum"] == 1
    assert not re.search(r'"(ge|gt|le|lt)":', json.dumps(fields))
