"""Sentences of a passage, and the one that answers."""

from mplus.training.chunk.answer_sentence import LONGEST, answering_sentence, sentences

PASSAGE = (
    "The mill was built by J. R. Ott in 1871. It burned down twice, e.g. in 1902! "
    '"Never again," said Mr. Ott. Since 1910 the mill has been a museum.'
)


def test_sentences_end_where_they_end() -> None:
    assert sentences(PASSAGE) == [
        "The mill was built by J. R. Ott in 1871.",
        "It burned down twice, e.g. in 1902!",
        '"Never again," said Mr. Ott.',
        "Since 1910 the mill has been a museum.",
    ]
    assert sentences("") == []
    assert sentences("no end") == ["no end"]


def test_the_sentence_with_the_answer_that_is_nearest_to_the_question() -> None:
    assert answering_sentence(PASSAGE, "Who built the mill?", "J. R. Ott") == "The mill was built by J. R. Ott in 1871."
    assert answering_sentence(PASSAGE, "Who said never again?", "Ott") == '"Never again," said Mr. Ott.'
    assert answering_sentence(PASSAGE, "What burned?", "the barn") is None


def test_of_a_long_sentence_the_part_around_the_answer() -> None:
    clauses = [f"part {n} is about a thing of its own" for n in range(12)]
    reply = answering_sentence(", ".join(clauses) + ".", "What is it about?", "part 6 is")
    assert reply is not None and "part 6 is" in reply
    assert LONGEST - 9 < len(reply.split()) <= LONGEST
