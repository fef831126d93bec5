"""Recall by the vectors of an embedder, alone and beside another scorer."""

from collections.abc import Sequence

import pytest
import torch

import mplus
from mplus.layouts.by_config import layout_of
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.recall import embedding_scorer, late_interaction
from mplus.recall.embedder import Embedder
from mplus.recall.lexical import REACH
from mplus.recall.scorer import Question, Scores, Shortlist
from mplus.recall.units import Candidates
from mplus.testing import tiny_model, toy_embedder
from tests.conftest import TINY

PLACES = ["hall", "cellar", "attic", "barn", "garden", "kitchen", "office", "garage"]
NOTES = [f"Lamp {n} is in the {place}." for n, place in enumerate(PLACES)]
QUESTION = "Which lamp is in the attic?"


def layout(recall: str, **changes: object) -> mplus.MemoryConfig:
    return mplus.MemoryConfig.model_validate(TINY.model_dump() | {"recall": recall} | changes)


def embedding_model(recall: str, **changes: object) -> MPlus:
    return tiny_model(embedder=toy_embedder(1024), memory=layout(recall, **changes))


def written(model: MPlus, notes: Sequence[str] = NOTES) -> Memory:
    memory = model.new_memory()
    for number, note in enumerate(notes):
        model.write(memory, note, source=f"note-{number}")
    return memory


def asked(model: MPlus, memory: Memory, text: str = QUESTION) -> tuple[Question, Candidates]:
    state = model._requests.present.state_of(memory)
    (track,) = state.tracks
    pools = (track.long_term, track.pending, track.short_term)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    question = model.weights.question(ids, track.recall_layer, model.weights.question_vector(ids, state, memory.config))
    return question, Candidates.of(pools, layout_of(memory.config), None, track.vectors)


def scored(model: MPlus, memory: Memory) -> Scores:
    question, candidates = asked(model, memory)
    return model.weights.scorers[memory.config.recall].scores(question, Shortlist(candidates), memory.config)


def test_relevance_is_the_cosine_above_that_of_an_average_chunk() -> None:
    model = embedding_model("embedding")
    memory = written(model)
    question, candidates = asked(model, memory)
    found = scored(model, memory)
    assert question.vector is not None and candidates.chunks is not None
    (track,) = model._requests.present.state_of(memory).tracks
    cosines = torch.stack([track.vectors.cosines(question.vector, chunk[None])[0] for chunk in candidates.chunks])
    torch.testing.assert_close(found.relevance, cosines - cosines.mean())
    assert abs(found.average) < 1e-6
    assert model.search(memory, QUESTION)[0].source == "note-2"


def test_only_what_the_embedder_says_counts_alone_and_a_weight_of_zero_is_the_other_scorer() -> None:
    late = tiny_model(memory=layout("late"))
    plain = written(late)
    for recall in ("embedding+late", "embedding"):
        model = embedding_model(recall, embedding_weight=0.0)
        memory = written(model)
        same = torch.allclose(scored(model, memory).relevance, scored(late, plain).relevance, atol=1e-5)
        assert same == (recall == "embedding+late")


@pytest.mark.parametrize("other", ["late", "attention"])
def test_the_sum_is_on_the_scale_of_the_other_scorer(other: str) -> None:
    model = embedding_model(f"embedding+{other}", embedding_weight=2.0)
    memory = written(model)
    alone = scored(model, model.with_recall(memory, "embedding")) if other == "late" else None
    first = scored(model, model.with_recall(memory, other))  # pyright: ignore[reportArgumentType]
    both = scored(model, memory)
    assert both.average == pytest.approx(first.average, abs=1e-6)
    if alone is not None:
        unit = 2.0 * first.spread / alone.spread
        torch.testing.assert_close(both.relevance, first.relevance + unit * alone.relevance)
        assert model.search(model.with_recall(memory, "embedding"), QUESTION)[0].source == "note-2"


def test_a_shortlist_has_what_either_scorer_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_interaction, "SHORTLIST", 6)
    monkeypatch.setattr(embedding_scorer, "SHORTLIST", 6)
    model = embedding_model("embedding+late", exact_recall_tokens=64, long_term_capacity=100_000)
    notes = [f"{NOTES[n % len(NOTES)]} It was seen there {n} times." for n in range(40)]
    memory = written(model, notes)
    question, candidates = asked(model, memory, "Where was it seen 23 times?")
    config = memory.config
    fused, alone = model.weights.scorers["embedding+late"], model.weights.scorers["embedding"]
    candidates.long_term.lasting.clear()  # the index was made when there was little to index
    short = fused.shortlist(question, candidates, config)
    assert short.sample is not None
    assert short.candidates.chunks is not None and candidates.chunks is not None
    best = alone.scores(question, Shortlist(candidates), config).relevance.topk(6).indices
    assert len(short.candidates) < len(candidates)
    around = (best[:, None] + torch.arange(-REACH, REACH + 1)).clamp(0, len(candidates) - 1).flatten()
    assert set(candidates.chunks[around].tolist()) <= set(short.candidates.chunks.tolist())
    exact = fused.scores(question, Shortlist(candidates), config).relevance
    places = torch.searchsorted(candidates.chunks, short.candidates.chunks)
    # At the rim of what was found, words of the passage around a chunk are not all counted.
    goes_on, found = candidates.goes_on, set(places.tolist())
    assert goes_on is not None
    texts = (~goes_on).cumsum(0)
    passages = [range(max(p - REACH, 0), min(p + REACH + 1, len(texts))) for p in places.tolist()]
    whole = torch.tensor(
        [all(n in found for n in near if texts[n] == texts[p]) for p, near in zip(places, passages, strict=True)]
    )
    assert set(best.tolist()) <= set(places[whole].tolist())
    scored = fused.scores(question, short, config).relevance
    torch.testing.assert_close(scored[whole], exact[places[whole]], atol=0.1, rtol=0.2)


def test_answers_of_one_memory_in_a_batch_and_alone_are_the_same() -> None:
    model = embedding_model("embedding+late")
    memory = written(model)
    prompts = [[{"role": "user", "content": f"What is kept in the {place}?"}] for place in ("barn", "office")]
    together = model.generate_batch([memory, memory], prompts, max_new_tokens=4)
    alone = [model.generate(memory, prompt, max_new_tokens=4) for prompt in prompts]
    assert [g.text for g in together] == [g.text for g in alone]
    assert not any(g.is_calibrated for g in alone)


def test_the_last_user_message_is_what_is_embedded() -> None:
    seen: list[str] = []

    class Watched:
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return toy_embedder(1024)(texts)

        def embed_query(self, text: str) -> list[float]:
            seen.append(text)
            return toy_embedder(1024)([text])[0]

    model = tiny_model(embedder=Embedder(Watched()), memory=layout("embedding"))
    memory = written(model)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": QUESTION},
    ]
    model.generate(memory, messages, max_new_tokens=2)
    model.generate(memory, "Plain text to go on from", max_new_tokens=2)
    model.search(memory, "attic")
    assert seen == [QUESTION, "Plain text to go on from", "attic"]
    seen.clear()
    model.generate(model.new_memory(), messages, max_new_tokens=2)
    assert seen == []


def test_sentences_are_told_apart_by_the_scorer_of_tokens() -> None:
    model = embedding_model("embedding", best_sentence_times=2)
    memory = written(model, [" ".join(NOTES[:4])])
    assert model.generate(memory, QUESTION, max_new_tokens=2).prefix_tokens > 0


def test_the_token_layout_has_no_texts_to_embed() -> None:
    with pytest.raises(ValueError, match="compares chunks of text, but layout=.token."):
        layout("embedding", layout="token")
    with pytest.raises(ValueError, match="compares chunks of text"):
        tiny_model(memory=layout("late", layout="token")).with_embedder(toy_embedder(1024))
