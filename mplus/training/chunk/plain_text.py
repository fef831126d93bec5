"""Plain text to train on: any folder of text files, no questions needed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mplus.evaluation.data_files import numbered_records, read_text
from mplus.inert import encode_inert

SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".jsonl")
HELD_OUT = 0.05
"""Share of the documents that is never trained on and measures what was learnt."""


@dataclass(frozen=True)
class Document:
    """One text and where it is from."""

    name: str
    text: str


def read_documents(paths: Sequence[Path]) -> list[Document]:
    """Every document in some files and folders, in a fixed order.

    Text files (.txt, .text, .md, .markdown, .rst) are a document each; of JSON lines (.jsonl) every line's
    ``text`` is one. All may be packed (.gz).

    Raises:
        ValueError: A path that does not exist, a file that is not text, or nothing to read at all.
    """
    found: list[Document] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"texts={str(path)!r}: no such file or folder.")
        for file in sorted(_files(path)):
            found += _documents(file)
    if not found:
        raise ValueError(
            f"texts={', '.join(map(str, paths))}: no text found. Expected files that end in {', '.join(SUFFIXES)} "
            "(or .gz of these), in folders of any depth."
        )
    return found


def held_out(documents: Sequence[Document], rng: random.Random) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and a few that are not; a single document is all trained on."""
    count = min(max(round(len(documents) * HELD_OUT), 1), 64) if len(documents) > 1 else 0
    chosen = set(rng.sample(range(len(documents)), count))
    return (
        [d for n, d in enumerate(documents) if n not in chosen],
        [documents[n] for n in sorted(chosen)],
    )


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.name.removesuffix(".gz").endswith(SUFFIXES):
            yield file


def _documents(file: Path) -> list[Document]:
    if not file.name.removesuffix(".gz").endswith(".jsonl"):
        text = read_text(file)
        return [Document(str(file), text)] if text.strip() else []
    found: list[Document] = []
    for number, record in numbered_records(file):
        content = record.get("text")
        if not isinstance(content, str):
            raise ValueError(f'{file}, line {number}: "text" is {content!r:.60}, expected a string.')
        if content.strip():
            found.append(Document(f"{file}:{number}", content))
    return found


@dataclass(frozen=True)
class Episode:
    """A stretch of a document: what is written, chunk by chunk, and what is then to be predicted."""

    chunks: tuple[tuple[int, ...], ...]
    target: tuple[int, ...]

    @property
    def context(self) -> tuple[int, ...]:
        """All that is written."""
        return tuple(i for chunk in self.chunks for i in chunk)


class Episodes:
    """Draws episodes from documents.

    Args:
        documents: To draw from.
        tokenizer: The backbone's.
        short_tokens: Most tokens of a short document; longer ones are long.
        chunk_tokens: Fewest and most tokens of a chunk; each chunk's size is drawn in between.
        target_tokens: Longest target.

    Raises:
        ValueError: No document is long enough for one chunk and a target.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Any,
        *,
        short_tokens: int,
        chunk_tokens: tuple[int, int],
        target_tokens: int,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._smallest, self._largest = chunk_tokens
        self._target_tokens, self._short_tokens = target_tokens, short_tokens
        self._ids = lru_cache(maxsize=512)(self._encode)
        self._repeat = tuple(encode_inert(tokenizer, "Repeat: "))
        # Tokens are only counted for a few documents, and estimated from characters for the rest.
        sample = range(0, len(documents), max(len(documents) // 32, 1))
        characters = sum(len(documents[n].text) for n in sample)
        per_token = characters / max(sum(len(self._ids(n)) for n in sample), 1)
        sizes = [len(d.text) / per_token for d in documents]
        self._short = [n for n, size in enumerate(sizes) if 3 * self._smallest <= size <= short_tokens]
        self.long = [n for n, size in enumerate(sizes) if size > short_tokens]
        """Numbers of the long documents."""
        longest = max(self._short + self.long, key=lambda n: len(documents[n].text), default=None)
        if longest is None or len(self._ids(longest)) < 2 * self._smallest:
            raise ValueError(
                f"None of {len(documents)} documents has {3 * self._smallest} tokens, enough for a chunk and a target. "
                "Give longer texts, or join short ones into files."
            )
        self._longest = longest

    def draw(self, rng: random.Random, *, long: float, most: int, repeat: float, single: bool = False) -> Episode:
        """One episode.

        Args:
            rng: Decides everything.
            long: Share of episodes that are from a long document, where there are any.
            most: Most tokens of an episode from a long document.
            repeat: Share of episodes whose target is what was written.
            single: One chunk only.
        """
        is_long = bool(self.long) and (rng.random() < long or not self._short)
        ids = self._ids(rng.choice(self.long if is_long else self._short))
        if len(ids) < 2 * self._smallest:  # the estimate was off; the longest always serves
            ids = self._ids(self._longest)
        target = rng.randint(self._smallest, min(self._target_tokens, max(len(ids) // 2, self._smallest)))
        room = (most if is_long else self._short_tokens) - target
        if single:
            room = min(rng.randint(self._smallest, self._largest), room)
        room = min(max(room, self._smallest), len(ids) - target)
        start = rng.randint(0, len(ids) - target - room)
        context, following = ids[start : start + room], ids[start + room : start + room + target]
        chunks = self._chunks(context, rng, single=single)
        if rng.random() < repeat:
            written = tuple(i for chunk in chunks for i in chunk)
            following = (*self._repeat, *written[: self._target_tokens])
        return Episode(chunks, tuple(following))

    def _chunks(self, ids: Sequence[int], rng: random.Random, *, single: bool) -> tuple[tuple[int, ...], ...]:
        """Chunks of drawn sizes; the first is never shorter than the smallest."""
        if single:
            return (tuple(ids),)
        chunks: list[tuple[int, ...]] = []
        stop = len(ids)
        while stop >= self._smallest:
            size = rng.randint(self._smallest, self._largest)
            if stop - size < self._smallest:
                size = min(stop, self._largest)
            chunks.insert(0, tuple(ids[stop - size : stop]))
            stop -= size
        return tuple(chunks)

    def _encode(self, number: int) -> tuple[int, ...]:
        return tuple(encode_inert(self._tokenizer, self._documents[number].text))
