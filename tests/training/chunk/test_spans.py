import random

from mplus.training.chunk.spans import span_question

TEXT = (
    "In 1887 two sisters opened the bakery on Mill Street. It employed 42 people and was known as Thornton House. "
    'The owners called the new oven "the old lady" because it was loud. Short one.'
)


def test_a_question_asks_for_words_of_the_text_that_it_does_not_give_away() -> None:
    found = [span_question(random.Random(seed), TEXT, 7) for seed in range(200)]
    asked = [question for question in found if question is not None]
    assert len(asked) > 150
    for question in asked:
        (answer,) = question.answers
        assert answer in TEXT
        assert answer not in question.text
        assert question.text.endswith("?")
        assert question.passages == (7,)
    assert {"1887", "42", "the old lady"} <= {question.answers[0] for question in asked}


def test_the_same_seed_asks_the_same_and_poor_texts_ask_nothing() -> None:
    assert span_question(random.Random(3), TEXT, 0) == span_question(random.Random(3), TEXT, 0)
    assert span_question(random.Random(0), "Too short. Yes.", 0) is None
    assert span_question(random.Random(0), "", 0) is None
