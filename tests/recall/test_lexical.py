"""Shared words against BM25 written out slowly, and what they do to recall."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from mplus import Memory, MPlus
from mplus.layouts.whole_chunks import WholeChunks
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.recall.lexical import LENGTH, REACH, SATURATION, lexical_match
from mplus.recall.units import Candidates
from mplus.testing import tiny_model
from mplus.words import WordForms, no_words
from tests.conftest import TINY

VOCABULARY = 12


def candidates(rng: random.Random) -> tuple[Candidates, list[list[int]], list[tuple[int, int]]]:
    """Two pools of random chunks; also the words and (chunk, source) of each chunk."""
    pools: list[Tokens] = []
    said: list[list[int]] = []
    named: list[tuple[int, int]] = []
    serial = 0
    for _ in range(2):
        words: list[int] = []
        chunks: list[int] = []
        sources: list[int] = []
        for _ in range(rng.randint(1, 9)):
            serial += rng.choice([1, 1, 1, 1, 2])
            own = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 7))]
            source = int(rng.random() < 0.2)
            words += own
            chunks += [serial] * len(own)
            sources += [source] * len(own)
            said.append(own)
            named.append((serial, source))
        count = len(words)
        known = Provenance(
            torch.arange(count),
            torch.ones(count, dtype=torch.float64),
            torch.tensor(sources),
            torch.tensor(chunks),
            torch.tensor(words, dtype=torch.int32),
        )
        pools.append(Tokens(Content((), (), torch.zeros(count, 1)), known))
    return Candidates.of(pools, WholeChunks()), said, named


def as_they_are(asked: list[int]) -> WordForms:
    """Words that have no other forms."""
    numbers = sorted(set(asked))
    return WordForms(torch.tensor(numbers, dtype=torch.int32), torch.arange(len(numbers)), len(numbers))


def slow(asked: list[int], said: list[list[int]], named: list[tuple[int, int]]) -> list[float]:
    asked = sorted(set(asked) - {0})
    usual = sum(map(len, said)) / len(said)
    rarity = {}
    for word in asked:
        having = sum(word in own for own in said)
        rarity[word] = math.log(1 + (len(said) - having + 0.5) / (having + 0.5))

    def score(times: int, length: float, average: float, word: int) -> float:
        room = SATURATION * (1 - LENGTH + LENGTH * length / average)
        return rarity[word] * times * (SATURATION + 1) / (times + room)

    def of(place: int, word: int) -> float:
        return score(Counter(said[place])[word], len(said[place]), usual, word)

    def follows(place: int) -> bool:
        return 0 < place < len(said) and named[place] == (named[place - 1][0] + 1, named[place - 1][1])

    def together(place: int, word: int) -> float:
        near = [place, *([place - 1] if follows(place) else []), *([place + 1] if follows(place + 1) else [])]
        return (of(place, word) + max(of(n, word) for n in near)) / 2

    def passage(place: int) -> list[int]:
        found = list(said[place])
        for step in (-1, 1):
            at = place
            for _ in range(REACH):
                if not follows(max(at, at + step)):
                    break
                at += step
                found += said[at]
        return found

    passages = [passage(place) for place in range(len(said))]
    mean = sum(map(len, passages)) / len(passages)

    def around(place: int, word: int) -> float:
        return score(Counter(passages[place])[word], len(passages[place]), mean, word)

    return [sum(together(p, w) + around(p, w) for w in asked) / (2 * sum(rarity.values())) for p in range(len(said))]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_bm25_as_a_share_of_the_question(seed: int) -> None:
    rng = random.Random(seed)
    given, said, named = candidates(rng)
    asked = [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, 5))]
    found = lexical_match(as_they_are(asked), given)
    torch.testing.assert_close(found, torch.tensor(slow(asked, said, named)))


def test_some_of_a_pool_are_scored_as_among_all() -> None:
    given, *_ = candidates(random.Random(3))
    asked = as_they_are([1, 2, 3])
    alone = given.take(torch.tensor([0, len(given) - 1]))
    assert not alone.goes_on.any()
    assert len(lexical_match(asked, alone, given)) == 2


def test_a_question_without_words_matches_no_unit() -> None:
    given, *_ = candidates(random.Random(0))
    assert lexical_match(as_they_are([]), given).tolist() == [0.0] * len(given)


def test_a_word_counts_in_any_of_its_forms() -> None:
    given, said, named = candidates(random.Random(4))
    first, second = sorted({word for own in said for word in own if word})[:2]
    forms = WordForms(torch.tensor([first, second], dtype=torch.int32), torch.zeros(2, dtype=torch.int64), 1)
    as_one = [[first if word == second else word for word in own] for own in said]
    torch.testing.assert_close(lexical_match(forms, given), torch.tensor(slow([first], as_one, named)))


@pytest.fixture
def model() -> MPlus:
    return tiny_model(memory=TINY)


def test_recall_finds_a_name_that_only_words_tell(model: MPlus) -> None:
    def first(weight: float) -> str:
        memory = model.new_memory(config=TINY.model_copy(update={"lexical_weight": weight}))
        for number in range(40):
            name = "Quorvex" if number == 17 else f"thing {number}"
            model.write(memory, f"There is {name} in the cellar. ", source=f"text-{number}")
        read = model.generate(memory, "Tell of Quorvex", max_new_tokens=1).recalled
        return max((one for one in read if one.pool != "short_term"), key=lambda one: one.share).source

    assert first(4.0) == "text-17"


def test_weight_zero_is_late_interaction_alone(model: MPlus) -> None:
    config = TINY.model_copy(update={"lexical_weight": 0.0})
    memories = [model.new_memory(config=config), model.new_memory(config=config), model.new_memory()]
    for memory in memories:
        for number in range(20):
            model.write(memory, f"Box {number} holds {number * 7} pens. ", source=f"text-{number}")
    _forget_words(memories[1])
    found = [[(hit.source, hit.relevance) for hit in model.search(memory, "Box 7", limit=None)] for memory in memories]
    assert found[0] == found[1]
    assert found[0] != found[2]


def _forget_words(memory: Memory) -> None:
    (track,) = memory.state.tracks
    known = replace(track.long_term.provenance, words=no_words(len(track.long_term)))
    memory.commit(replace(memory.state, tracks=(replace(track, long_term=replace(track.long_term, provenance=known)),)))
