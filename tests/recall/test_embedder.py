from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mplus import Embedder, EmbedderError
from mplus.recall import embedder as module
from mplus.testing import toy_embedder

TEXTS = ["a red house", "two blue cars", "a red car"]


def vectors(texts: Sequence[str]) -> list[list[float]]:
    return toy_embedder(16)(list(texts))


class LangChainLike:
    model = "some-model"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return vectors(texts)

    def embed_query(self, text: str) -> list[float]:
        return vectors([f"{text} asked"])[0]


class LlamaIndexLike:
    model_name = "some-model"

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        return vectors(texts)

    def get_query_embedding(self, query: str) -> list[float]:
        return vectors([f"{query} asked"])[0]


class SentenceTransformersLike(torch.nn.Module):
    def encode(self, texts: list[str]) -> np.ndarray:
        return np.array(vectors(texts))


class ArrayFunction:
    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor(vectors(texts), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "source", [LangChainLike(), LlamaIndexLike(), SentenceTransformersLike(), ArrayFunction(), vectors]
)
def test_every_kind_gives_unit_vectors(source: Any) -> None:
    embedder = Embedder(source)
    found = embedder.passages(TEXTS)
    expected = torch.nn.functional.normalize(torch.tensor(vectors(TEXTS)), dim=-1)
    torch.testing.assert_close(found, expected)
    asked = "red asked" if isinstance(source, (LangChainLike, LlamaIndexLike)) else "red"
    torch.testing.assert_close(embedder.question("red"), Embedder(vectors).passages([asked])[0])


def test_the_frameworks_own_classes_are_taken() -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding
    from llama_index.core.embeddings import MockEmbedding

    for source in (DeterministicFakeEmbedding(size=6), MockEmbedding(embed_dim=6)):
        embedder = Embedder(source)
        assert embedder.passages(TEXTS).shape == (3, 6)
        assert embedder.question("red").shape == (6,)


def test_prefixes_stand_before_texts_and_questions() -> None:
    seen: list[str] = []

    def embed(texts: list[str]) -> list[list[float]]:
        seen.extend(texts)
        return vectors(texts)

    embedder = Embedder(embed, query_prefix="query: ", passage_prefix="passage: ", name="e5")
    embedder.passages(["a", "b"])
    embedder.question("c")
    assert seen == ["passage: a", "passage: b", "query: c"]
    assert embedder.name == "e5 after 'passage: '"


def test_names_are_of_the_model_then_of_the_function() -> None:
    assert Embedder(LangChainLike()).name == Embedder(LlamaIndexLike()).name == "some-model"
    assert Embedder(vectors).name == f"{__name__}.vectors"
    assert Embedder(ArrayFunction()).name == f"{__name__}.ArrayFunction"
    assert Embedder(vectors, name="mine").name == "mine"
    own = Embedder(vectors)
    assert Embedder.of(own) is own


def test_many_texts_are_given_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    sizes: list[int] = []

    def embed(texts: list[str]) -> list[list[float]]:
        sizes.append(len(texts))
        return vectors(texts)

    assert len(Embedder(embed).passages(TEXTS)) == 3
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0, 2.0]], r"3 texts: .*shape \(1, 2\)"),
        ([1.0, 2.0, 3.0], r"shape \(3,\)"),
        ([[], [], []], r"shape \(3, 0\)"),
        ([[1.0], [1.0, 2.0], [1.0]], "of one size"),
        ([[1.0], [float("nan")], [2.0]], "vector 1 "),
        ([[1.0], [2.0], [float("inf")]], "vector 2 "),
        ([["a"], ["b"], ["c"]], "of one size"),
        (None, r"shape \(\)"),
    ],
)
def test_what_is_no_vector_is_an_error(returned: Any, message: str) -> None:
    with pytest.raises(EmbedderError, match=message):
        Embedder(lambda texts: returned, name="mine").passages(TEXTS)


def test_an_error_of_the_embedder_is_named() -> None:
    def embed(texts: list[str]) -> Any:
        raise ConnectionError("no network")

    with pytest.raises(EmbedderError, match=r"'mine' failed on 1 texts \(ConnectionError: no network\)") as raised:
        Embedder(embed, name="mine").question("red")
    assert isinstance(raised.value.__cause__, ConnectionError)


@pytest.mark.parametrize("source", [None, "text-embedding-3-small", LangChainLike, 3])
def test_what_is_no_embedder_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="expected LangChain Embeddings"):
        Embedder(source)
