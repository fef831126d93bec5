"""Words of a text by its tokens."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus import MPlus
from mplus.inert import encode_inert
from mplus.testing import byte_tokenizer
from mplus.words import LINE_END, NO_WORD, SENTENCE_END, Words, numbered

TOKENIZER = byte_tokenizer()
WORDS = Words(TOKENIZER)


def spoken(text: str) -> list[int]:
    found = WORDS(encode_inert(TOKENIZER, text))
    return found[found > NO_WORD].tolist()


@given(st.text(alphabet="abC3 .,'\n-", max_size=80))
def test_every_word_is_numbered_once_where_it_begins(text: str) -> None:
    words = re.findall(r"[abC3]+", text)
    assert spoken(text) == [numbered(word) for word in words]
    begins = [match.start() for match in re.finditer(r"[abC3]+", text)]
    assert (WORDS(encode_inert(TOKENIZER, text)) > NO_WORD).nonzero().flatten().tolist() == begins


def test_case_is_ignored_and_punctuation_has_no_words() -> None:
    assert spoken("Paris PARIS paris") == [numbered("paris")] * 3
    assert spoken(" ?!") == []
    assert WORDS([]).dtype == torch.int32
    assert WORDS([]).shape == (0,)


@pytest.mark.default_model
def test_a_word_of_several_tokens_is_one_word(default_model: MPlus) -> None:
    words = Words(default_model.tokenizer)
    ids = encode_inert(default_model.tokenizer, "Energiprojekt AB built it in 1987.")
    assert len(ids) > 6
    found = words(ids)
    assert found[found > NO_WORD].tolist() == [
        numbered(w) for w in ["energiprojekt", "ab", "built", "it", "in", "1987"]
    ]
    apart = words(encode_inert(default_model.tokenizer, "in the Energiprojekt"))
    assert numbered("energiprojekt") in apart.tolist()


def test_ends_of_sentences_and_lines_are_marked() -> None:
    text = 'It costs 3.5 euros, e.g. "here". So?\nYes'
    found = WORDS(encode_inert(TOKENIZER, text)).tolist()
    assert {text[: place + 1]: word for place, word in enumerate(found) if word < NO_WORD} == {
        "It costs 3.5 euros, e.g.": SENTENCE_END,
        'It costs 3.5 euros, e.g. "here".': SENTENCE_END,
        'It costs 3.5 euros, e.g. "here". So?': SENTENCE_END,
        'It costs 3.5 euros, e.g. "here". So?\n': LINE_END,
    }
    assert WORDS(encode_inert(TOKENIZER, "The end."))[-1] == SENTENCE_END
    assert min(WORDS(encode_inert(TOKENIZER, "no end")).tolist()) == NO_WORD


def test_a_markdown_heading_is_part_of_the_sentence_below_it() -> None:
    for text in ("## When is it open?\n\nAt nine. On Sundays\n", "Yes.\n\n# Hours\nAt nine. On Sundays\n"):
        found = WORDS(encode_inert(TOKENIZER, text)).tolist()
        ends = [text[: place + 1] for place, word in enumerate(found) if word < NO_WORD]
        assert [end for end in ends if end.rstrip().endswith(("?", "open", "Hours"))] == []
        assert any(end.endswith("At nine.") for end in ends) and ends[-1] == text
