"""A batch in parts, each on a thread of its own: many small operations use several cores better so than each by itself.

An operation of a small model's training step takes a millisecond or two. Split over the cores, each waits for the
slowest of them every time; parts of the batch side by side wait for each other once. Operations of a large model are
long enough for all cores, so that its parts are computed one after the other, and each holds its activations alone.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FEWEST = 4
"""Samples that are worth a thread."""
TURNS = 2
"""Parts that a thread computes one after the other, so that fewer activations are held at a time."""


class SideBySide:
    """Losses of the parts of a batch, and their gradients, computed at once.

    Args:
        threads: So many parts at once; each computes on one core.
        in_turn: One part after the other, each on all cores.
    """

    def __init__(self, threads: int, *, in_turn: bool = False) -> None:
        self.threads, self.in_turn = threads, in_turn
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0

    def parts_of(self, samples: Sequence[Any]) -> list[Sequence[Any]]:
        """A batch cut into parts of about equal number, in order; whole where there is one thread.

        Samples of one memory, which compute together, stay together.
        """
        count = len(samples) if self.in_turn else self.threads * TURNS if self.threads > 1 else 1
        count = max(min(count, len(samples) // FEWEST), 1)
        memories = [getattr(sample, "memory", 0) for sample in samples]
        bounds: list[int] = []
        for number in range(count + 1):
            bound = len(samples) * number // count
            while 0 < bound < len(samples) and memories[bound] and memories[bound] == memories[bound - 1]:
                bound += 1
            bounds.append(bound)
        return [samples[start:stop] for start, stop in pairwise(sorted(set(bounds)))]

    def losses(
        self, work: Callable[[Sequence[Any]], Tensor], parts: Sequence[Sequence[Any]], leaves: Sequence[Tensor]
    ) -> Tensor:
        """The loss of every sample, [sample], whose sum or mean can be differentiated by the leaves.

        Args:
            work: Computes the losses of a part. It is called by several threads, and draws nothing at random.
            parts: The batch.
            leaves: What gradients are wanted of.
        """
        losses: Any = _Joined.apply(self._map, work, parts, *leaves)
        return losses

    def _map(self, work: Callable[[Sequence[Any]], Any], parts: Sequence[Sequence[Any]]) -> list[Any]:
        if self._pool is None or self._owner != os.getpid():  # a forked process has no threads
            # In turn, too, on a thread that differentiates: the caller's is in the midst of doing so.
            at_once, each = (1, self.threads) if self.in_turn else (self.threads, 1)
            self._pool = ThreadPoolExecutor(at_once, "training", initializer=partial(torch.set_num_threads, each))
            self._owner = os.getpid()
        return list(self._pool.map(work, parts))


class _Joined(torch.autograd.Function):
    """Losses of parts; their gradients are computed with them, each part's on its own thread."""

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[..., list[tuple[Tensor, tuple[Tensor | None, ...]]]],
        work: Callable[[Sequence[Any]], Tensor],
        parts: Sequence[Sequence[Any]],
        *leaves: Tensor,
    ) -> Tensor:
        kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
        lowered = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]
        asked = [leaf for leaf, wanted in zip(leaves, ctx.needs_input_grad[3:], strict=True) if wanted]

        def one(part: Sequence[Any]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            with torch.enable_grad(), ExitStack() as stack:
                for kind, dtype in lowered:
                    stack.enter_context(torch.autocast(kind, dtype=dtype))
                losses = work(part)
            return losses.detach(), torch.autograd.grad(losses.sum(), asked, allow_unused=True)

        found = run(one, parts)
        ctx.wanted = ctx.needs_input_grad[3:]
        ctx.gradients = [_sum([gradients[n] for _, gradients in found]) for n in range(len(asked))]
        return torch.cat([losses for losses, _ in found])

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        (weights,) = above
        if not bool((weights == weights[0]).all()):
            raise ValueError("Losses of parts count alike: take their sum or mean.")
        gradients = iter(ctx.gradients)
        scaled = [next(gradients) if wanted else None for wanted in ctx.wanted]
        return None, None, None, *(None if g is None else g * weights[0] for g in scaled)


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there).sum(dim=0) if len(there) > 1 else there[0] if there else None
