"""BM25 against its formula written out; the embedder where it is installed."""

import math
import random
import sys

import numpy as np
import pytest

from mplus.evaluation.baselines import PassageIndex
from mplus.evaluation.passage_search import BM25, EMBEDDER_MODULE, PASSAGE_TOKENS, MiniLM, cut_passages
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import Question, Task
from mplus.model import MPlus
from mplus.sentences import SentenceEnds

VOCABULARY = ["tower", "hill", "ship", "Harbour", "bread", "Biscuit", "dog", "of", "the"]


def obvious_bm25(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    documents = [text.lower().split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query.lower().split():
            holding = sum(word in other for other in documents)
            rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = document.count(word)
            score += rarity * count / (count + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def test_bm25_is_its_formula_over_the_candidates_alone() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(VOCABULARY, k=rng.randint(1, 12))) for _ in range(40)]
    index = BM25(texts)
    for _ in range(20):
        query = " ".join(rng.choices([*VOCABULARY, "unheard"], k=rng.randint(1, 5)))
        candidates = np.array(sorted(rng.sample(range(40), rng.randint(1, 40))))
        found = index.scores(query, candidates)
        assert found == pytest.approx(obvious_bm25(query, [texts[n] for n in candidates]), rel=1e-4, abs=1e-6)


def test_long_texts_become_several_passages_of_one_source(model: MPlus) -> None:
    text = " ".join(f"Sentence {n} is about ship {n}." for n in range(60))
    parts = cut_passages("log", text, model.tokenizer, SentenceEnds(model.tokenizer))
    assert len(parts) > 1 and {part.source for part in parts} == {"log"}
    assert all(len(model.tokenizer(part.text)["input_ids"]) <= PASSAGE_TOKENS for part in parts)
    assert " ".join(part.text for part in parts) == text


@pytest.fixture
def stream(model: MPlus) -> Stream:
    contexts = {"a": "The dog is called Biscuit.", "b": "The dog is called Rex."}
    questions = (Question("1", "What is the dog called?", ("Biscuit",), ("a",), ("a",)),)
    distractors = (*(f"Ship number {n} brings bread." for n in range(10)), "What is the dog called here?")
    totals = tuple(len(text) for text in distractors)
    return Stream(Task("dogs", contexts, questions), distractors, tuple(np.cumsum(totals).tolist()), (0, 100, 290))


def test_a_question_meets_only_what_has_been_written(model: MPlus, stream: Stream) -> None:
    index = PassageIndex(stream, model.tokenizer, BM25)
    question = stream.task.questions[0]
    names = {level: [name for name, _ in index.sources(index.ranked(question, level))] for level in stream.levels}
    assert names[0] == ["a"]
    assert names[100][0] == "a" and len(names[100]) == 1 + stream.count(100)
    assert names[290][0] == "distractor-10" and "b" not in names[290]
    together = PassageIndex(
        Stream(stream.task, stream.distractors, stream.totals, stream.levels, together=True), model.tokenizer, BM25
    )
    assert {name for name, _ in together.sources(together.ranked(question, 0))} == {"a", "b"}


def test_a_missing_embedder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EMBEDDER_MODULE, None)
    with pytest.raises(ValueError, match=r"mplus\[evaluate\]"):
        MiniLM(["a text"])


def test_the_embedder_finds_a_paraphrase() -> None:
    pytest.importorskip(EMBEDDER_MODULE)
    texts = ["The puppy answers to Biscuit.", "Ships carry grain across the sea.", "x " * 600]
    embedder = MiniLM(texts)
    scores = embedder.scores("What is the dog called?", np.arange(3))
    assert scores.argmax() == 0
    assert embedder.scores("What is the dog called?", np.array([1, 0])) == pytest.approx(scores[[1, 0]], abs=1e-5)
    assert np.linalg.norm(embedder.embed(texts), axis=1) == pytest.approx(np.ones(3), abs=1e-5)
