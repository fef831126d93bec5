"""Forms of a word, and the words of a question in all of theirs."""

import pytest
import torch

from mplus.inert import encode_inert
from mplus.testing import byte_tokenizer
from mplus.word_forms import forms_of
from mplus.words import Words, numbered

TOKENIZER = byte_tokenizer()
WORDS = Words(TOKENIZER)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("moored", "mooring"),
        ("moor", "moors"),
        ("baked", "bakes"),
        ("baking", "bake"),
        ("planning", "plan"),
        ("plan", "planned"),
        ("carries", "carry"),
        ("carry", "carried"),
        ("boxes", "box"),
        ("writer", "writes"),
        ("quickly", "quick"),
    ],
)
def test_a_form_is_found_from_either_side(asked: str, said: str) -> None:
    assert said in forms_of(asked) and asked in forms_of(said)


@pytest.mark.parametrize("word", ["", "is", "1914", "b2b", "a"])
def test_short_words_and_numbers_have_one_form(word: str) -> None:
    assert forms_of(word) == {word}


def test_every_word_is_among_its_own_forms() -> None:
    for word in ("bus", "ring", "red", "fly", "Straße", "élève", "used"):
        assert word in forms_of(word)


def test_words_that_are_forms_of_one_another_count_once() -> None:
    asked = WORDS.asked(encode_inert(TOKENIZER, "Do Dogs like a dog, dogs?"))
    of = dict(zip(asked.numbers.tolist(), asked.word.tolist(), strict=True))
    assert asked.num_words == 4  # do, dogs, like, a
    assert of[numbered("dog")] == of[numbered("dogs")] == 1
    assert asked.numbers.tolist() == sorted(asked.numbers.tolist())
    assert asked.numbers.dtype == torch.int32 and set(of.values()) == set(range(4))


def test_a_text_without_words_asks_nothing() -> None:
    asked = WORDS.asked(encode_inert(TOKENIZER, "?! \n"))
    assert asked.num_words == 0 and asked.numbers.shape == asked.word.shape == (0,)
