"""How varied the corpus is: near-duplicates, distinct word sequences, kinds of question."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from zlib import crc32

import numpy as np

from mplus.evaluation.facts import make_fact
from mplus.training.talk.format import ITEM_KINDS, QUESTION_KINDS, Item
from mplus.training.talk.slots import REFERENCE, as_written, texts

SHINGLE = 5
DUPLICATE = 0.5
"""Jaccard similarity from which two items count as one."""
_NUM_HASHES, _ROWS = 128, 2
_PRIME = (1 << 31) - 1


def shingles(item: Item) -> set[int]:
    """Every five words in a row of what was told, hashed; slots stand for their types."""
    told = " ".join(message.text for message in item.told)
    told = REFERENCE.sub(lambda found: _type_of(item, found[1]), told)
    in_order = re.findall(r"\w+", told.casefold())
    return {crc32(" ".join(in_order[i : i + SHINGLE]).encode()) for i in range(max(1, len(in_order) - SHINGLE + 1))}


def _type_of(item: Item, name: str) -> str:
    slot = item.slots.get(name.upper())
    return slot.type.replace(" ", "") if slot else name


def near_duplicates(items: Sequence[Item]) -> list[tuple[str, str, float]]:
    """Pairs of ids whose texts share half of their shingles or more, and their Jaccard similarity.

    MinHash signatures in bands of two bring together pairs above 0.3 almost surely; those are compared exactly.
    """
    sets = [shingles(item) for item in items]
    generator = np.random.default_rng(0)
    factors, offsets = generator.integers(1, _PRIME, size=(2, _NUM_HASHES, 1), dtype=np.int64)
    bands: dict[tuple[int, bytes], list[int]] = {}
    for i, each in enumerate(sets):
        hashed = (np.fromiter(each, dtype=np.int64) % _PRIME * factors + offsets) % _PRIME
        signature = hashed.min(axis=1).reshape(-1, _ROWS)
        for band, row in enumerate(signature):
            bands.setdefault((band, row.tobytes()), []).append(i)
    pairs = {pair for together in bands.values() if len(together) > 1 for pair in combinations(together, 2)}
    found = [(items[i].id, items[j].id, len(sets[i] & sets[j]) / len(sets[i] | sets[j])) for i, j in sorted(pairs)]
    return [pair for pair in found if pair[2] >= DUPLICATE]


def distinct_trigrams(some_texts: Iterable[str], num_words: int) -> float:
    """Distinct sequences of three words among the first words of some texts, per 1,000 words.

    Args:
        some_texts: Read as one, in order.
        num_words: How many words to look at; compare only figures of equally many.
    """
    seen = list(_words_of(some_texts, num_words))
    return 1000 * len(set(zip(seen, seen[1:], seen[2:], strict=False))) / max(1, len(seen))


def _words_of(some_texts: Iterable[str], num_words: int) -> Iterator[str]:
    left = num_words
    for text in some_texts:
        for word in re.findall(r"\w+", text.casefold())[:left]:
            left -= 1
            yield word
        if left <= 0:
            return


def facts_texts(seed: int = 0) -> Iterator[str]:
    """What the generated `facts` task says and asks, without end."""
    rng = random.Random(seed)
    while True:
        fact = make_fact(rng, "train")
        yield from (fact.statement, fact.question, fact.reply)


def report(items: Sequence[Item]) -> str:
    """Tables of what the corpus holds, as text."""
    all_texts = [text for item in items for text in texts(as_written(item))]
    num_words = sum(len(re.findall(r"\w+", text)) for text in all_texts)
    ours, theirs = distinct_trigrams(all_texts, num_words), distinct_trigrams(facts_texts(), num_words)
    kinds = Counter(question.kind for item in items for question in item.ask)
    paraphrased = sum(question.paraphrase for item in items for question in item.ask)
    if not items:
        return "no items"
    lines = [
        *_by_writer(items),
        "",
        f"words: {num_words:,}; distinct 3-grams per 1,000 words: {ours:.0f}",
        f"the same of as many words of `facts`: {theirs:.0f}; ours is {ours / theirs:.1f} times that",
        f"questions: {kinds.total()}, answered in other words than the text's: {paraphrased / kinds.total():.0%}",
        *(f"  {kind:<10} {kinds[kind]:>5} {kinds[kind] / kinds.total():>5.0%}" for kind in QUESTION_KINDS),
        "five words that stand in most items:",
        *(f"  {times} items: {run}" for run, times in _repeated(items)),
    ]
    return "\n".join(lines)


def _by_writer(items: Sequence[Item]) -> Iterator[str]:
    yield f"{'writer':<20}" + "".join(f"{kind:>14}" for kind in ITEM_KINDS) + f"{'words told':>12}"
    for writer in sorted({item.writer for item in items}):
        mine = [item for item in items if item.writer == writer]
        told = sum(len(message.text.split()) for item in mine for message in item.told)
        yield (
            f"{writer:<20}" + "".join(f"{sum(i.kind == kind for i in mine):>14}" for kind in ITEM_KINDS) + f"{told:>12}"
        )


def _repeated(items: Sequence[Item]) -> list[tuple[str, int]]:
    """Runs of five words that most items share: where a template shows."""
    runs: Counter[str] = Counter()
    for item in items:
        filled = REFERENCE.sub(lambda found, item=item: _type_of(item, found[1]), "\n".join(texts(item)))
        lines = [re.findall(r"\w+", line.casefold()) for line in filled.split("\n")]
        runs.update({" ".join(line[i : i + SHINGLE]) for line in lines for i in range(len(line) - SHINGLE + 1)})
    return [(run, times) for run, times in runs.most_common(5) if times > 1]
