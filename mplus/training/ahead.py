"""Samples of coming steps: drawn when they are asked for, or ahead of that by other processes."""

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mplus.backbone.cpu import usable_cores
from mplus.training.chunk.read_adapter import ReaderSettings
from mplus.training.chunk.sample import TOGETHER, Sample, SampleSource

POOLED_BATCHES = 4
"""Batches that are drawn together, so that each can be of samples that go well together."""
MOST_PROCESSES = 14
AHEAD = 3
"""Pools of batches that each process may have ready."""


def spare_processes() -> int:
    """How many processes may draw samples while this one uses a GPU; 0 where processes cannot be forked."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    return min(max(usable_cores() - 2, 1), MOST_PROCESSES)


class Batches:
    """The batches of a run, step by step; the same whoever draws them.

    Args:
        samples: Where they are drawn from. Other processes are forked from this one, and draw on the CPU alone.
        settings: Seed and size.
        processes: That draw ahead; 0: this one draws a pool when a step asks for it.
    """

    def __init__(self, samples: SampleSource, settings: ReaderSettings, processes: int = 0) -> None:
        self._samples, self._settings, self._processes = samples, settings, processes
        self._pool, self._batches = -1, list[list[Sample]]()
        self._coming: Iterator[list[list[Sample]]] | None = None

    def of(self, step: int) -> list[Sample]:
        """The samples of a step."""
        pool = step // POOLED_BATCHES
        if pool != self._pool:
            if self._coming is None or pool != self._pool + 1:
                self._coming = self._from(pool)
            self._pool, self._batches = pool, next(self._coming)
        return self._batches[step % POOLED_BATCHES]

    def _from(self, first: int) -> Iterator[list[list[Sample]]]:
        last = -(-self._settings.steps // POOLED_BATCHES)
        pools = range(first, max(last, first + 1))
        if not self._processes:
            return (pooled_batches(self._samples, self._settings, pool) for pool in pools)
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Pools(self._samples, self._settings),  # pyright: ignore[reportArgumentType]
            sampler=pools,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self._processes,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",
            worker_init_fn=_one_thread,
        )
        return iter(loader)


class _Pools:
    """Pools of batches by number."""

    def __init__(self, samples: SampleSource, settings: ReaderSettings) -> None:
        self._samples, self._settings = samples, settings

    def __getitem__(self, pool: int) -> list[list[Sample]]:
        return pooled_batches(self._samples, self._settings, pool)


def _as_it_is(pool: Any) -> Any:
    return pool


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def pooled_batches(samples: SampleSource, settings: ReaderSettings, pool: int) -> list[list[Sample]]:
    """Batches of some steps in a row, drawn together: each of samples of like length, so that little is padding."""
    rng = random.Random(settings.seed * 1_000_003 + pool)
    drawn = _laid_together(samples.draw(rng, settings.batch * POOLED_BATCHES))
    places = list(range(POOLED_BATCHES))
    rng.shuffle(places)
    return [drawn[place * settings.batch : (place + 1) * settings.batch] for place in places]


def _laid_together(samples: Sequence[Sample]) -> list[Sample]:
    """Samples about one memory beside each other, where there are enough of them; else by length, as these are."""
    by_memory: dict[int, list[Sample]] = {}
    for sample in samples:
        by_memory.setdefault(sample.memory, []).append(sample)
    alone = by_memory.pop(0, [])
    together = [mine for mine in by_memory.values() if len(mine) % TOGETHER == 0]
    alone += [sample for mine in by_memory.values() if len(mine) % TOGETHER for sample in mine]
    alone.sort(key=_length)
    together += [alone[start : start + TOGETHER] for start in range(0, len(alone), TOGETHER)]
    # What is left over of those alone is the longest of them, and stands last, so that the others are not cut apart.
    together.sort(key=lambda mine: (len(mine) < TOGETHER, max(map(_length, mine))))
    return [sample for mine in together for sample in mine]


def _length(sample: Sample) -> int:
    return len(sample.input_ids)


def in_parallel(work: Callable[[str], Any], texts: Sequence[str], processes: int) -> list[Any]:
    """Something worked out on the CPU for each text, by forked processes where there are several."""
    if processes < 2 or len(texts) < 2 * processes:
        return [work(text) for text in texts]
    shuffled = list(range(len(texts)))
    random.Random(0).shuffle(shuffled)
    global _work
    _work = work
    with multiprocessing.get_context("fork").Pool(processes, initializer=_one_thread, initargs=(0,)) as pool:
        done = dict(pool.imap_unordered(_numbered, [(n, texts[n]) for n in shuffled], chunksize=16))
    _work = None
    return [done[n] for n in range(len(texts))]


_work: Callable[[str], Any] | None = None
"""The function that forked processes run. They inherit it, because a function that holds tensors cannot be sent."""


def _numbered(item: tuple[int, str]) -> tuple[int, Any]:
    assert _work is not None
    return item[0], _work(item[1])
