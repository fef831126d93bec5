import threading

import pytest

from mplus.generation.constrain import Constraint
from mplus.model import MPlus

QUESTION = "Which box is blue?"


@pytest.fixture
def memory(model: MPlus, text: str):
    memory = model.new_memory()
    model.write(memory, text, source="a")
    return memory


def test_an_unsure_answer_is_replaced_and_a_sure_one_is_not(model: MPlus, memory) -> None:
    plain = model.generate(memory, QUESTION, max_new_tokens=6)
    said = model.generate(memory, QUESTION, max_new_tokens=6, abstain_below=plain.confidence)
    assert (said.text, said.abstained) == (plain.text, False)
    above = min(plain.confidence * 1.001, 1.0)
    withheld = model.generate(memory, QUESTION, max_new_tokens=6, abstain_below=above)
    assert (withheld.text, withheld.abstained) == ("I don't know.", True)
    assert (withheld.token_ids, withheld.confidence, withheld.recalled) == (
        plain.token_ids,
        plain.confidence,
        plain.recalled,
    )
    other = model.generate(memory, QUESTION, max_new_tokens=6, abstain_below=above, abstain_reply="Keine Ahnung.")
    assert other.text == "Keine Ahnung."


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_stream_yields_the_text_of_generate_in_one_piece(model: MPlus, memory, limit: float) -> None:
    expected = model.generate(memory, QUESTION, max_new_tokens=6, abstain_below=limit)
    stream = model.stream(memory, QUESTION, max_new_tokens=6, abstain_below=limit)
    assert list(stream) == [expected.text]
    assert stream.generation.text == expected.text
    assert expected.abstained == (limit == 1.0)


def test_each_row_of_a_batch_decides_for_itself(model: MPlus, memory) -> None:
    prompts = [QUESTION, "Sentence 12 says that", "qqqq"]
    plain = model.generate_batch([memory] * 3, prompts, max_new_tokens=4)
    limit = sorted(a.confidence for a in plain)[1]
    answers = model.generate_batch([memory] * 3, prompts, max_new_tokens=4, abstain_below=limit)
    assert sum(a.abstained for a in answers) == 1
    assert all(a.abstained or a.text == p.text for a, p in zip(answers, plain, strict=True))


def test_what_was_withheld_does_not_leak_from_a_cancelled_stream(model: MPlus, memory) -> None:
    cancelled = threading.Event()

    def cancel_soon(ids: list[int], scores):
        if len(ids) == 2:
            cancelled.set()
        return scores

    stream = model.stream(memory, QUESTION, abstain_below=1.0, cancelled=cancelled, processors=[cancel_soon])
    assert list(stream) == []
    assert stream.generation.finish_reason == "cancelled"
    assert stream.generation.text == "I don't know."
    cancelled.set()
    before_the_first_token = model.generate(memory, QUESTION, abstain_below=1.0, cancelled=cancelled)
    assert (before_the_first_token.text, before_the_first_token.abstained) == ("", False)
    assert before_the_first_token.confidence == 0.0


def test_a_scheduler_abstains_too(model: MPlus, memory) -> None:
    with model.serve() as scheduler:
        answer = scheduler.generate(memory, QUESTION, max_new_tokens=4, abstain_below=1.0)
    assert answer.abstained and answer.text == "I don't know."


@pytest.mark.parametrize("limit", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_probability_is_refused(model: MPlus, memory, limit: float) -> None:
    with pytest.raises(ValueError, match="abstain_below"):
        model.generate(memory, QUESTION, abstain_below=limit)


def test_a_form_and_a_set_reply_exclude_each_other(model: MPlus, memory) -> None:
    with pytest.raises(ValueError, match=r"abstain_below=0\.5.*constraint"):
        model.generate(memory, QUESTION, abstain_below=0.5, constraint=Constraint.json_schema({"type": "object"}))
