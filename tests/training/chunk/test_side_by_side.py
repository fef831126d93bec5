"""Parts of a batch on threads of their own: the losses and gradients of the whole batch."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mplus.training.chunk.sample import Sample
from mplus.training.chunk.side_by_side import SideBySide


def losses(scale: Tensor, unused: Tensor, batch: Sequence[Tensor]) -> Tensor:
    return torch.stack([(scale * sample).square().sum() for sample in batch])


@pytest.mark.parametrize(("threads", "count"), [(1, 1), (2, 3), (3, 3)])
def test_losses_and_gradients_are_those_of_the_whole_batch(threads: int, count: int) -> None:
    batch = [torch.randn(5) for _ in range(13)]
    scale, unused = torch.randn(5, requires_grad=True), torch.randn(2, requires_grad=True)
    whole = losses(scale, unused, batch)
    expected = torch.autograd.grad(whole.mean(), scale)[0]
    beside = SideBySide(threads)
    parts = beside.parts_of(batch)
    assert len(parts) == count and sum(map(len, parts)) == len(batch)
    found = beside.losses(lambda part: losses(scale, unused, part), parts, [scale, unused])
    found.mean().backward()
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(scale.grad, expected)
    assert unused.grad is None


def test_few_samples_are_not_cut() -> None:
    assert [len(part) for part in SideBySide(8).parts_of(range(9))] == [4, 5]
    assert [len(part) for part in SideBySide(8).parts_of(range(3))] == [3]


@pytest.mark.parametrize(("threads", "in_turn"), [(2, False), (2, True)])
def test_samples_of_one_memory_are_not_cut_apart(threads: int, in_turn: bool) -> None:
    samples = [Sample((), (1, 2), 1, memory=memory) for memory in [7] * 6 + [8] * 4 + [0] * 2 + [9] * 4]
    beside = SideBySide(threads, in_turn=in_turn)
    parts = beside.parts_of(samples)
    assert [sample for part in parts for sample in part] == samples and len(parts) > 1
    held = [{sample.memory for sample in part} - {0} for part in parts]
    assert sum(map(len, held)) == 3, "no memory is in two parts"


def test_in_turn_gives_the_same_losses_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [torch.randn(5) for _ in range(13)]
    scale, unused = torch.randn(5, requires_grad=True), torch.randn(2, requires_grad=True)
    running: list[int] = []

    def work(part: Sequence[Tensor]) -> Tensor:
        running.append(1)
        assert sum(running) == 1, "one after the other"
        found = losses(scale, unused, part)
        running.append(-1)
        return found

    beside = SideBySide(2, in_turn=True)
    found = beside.losses(work, beside.parts_of(batch), [scale, unused])
    found.sum().backward()
    whole = losses(scale, unused, batch)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(scale.grad, torch.autograd.grad(whole.sum(), scale)[0])


def test_losses_that_do_not_count_alike_are_refused() -> None:
    scale = torch.ones(5, requires_grad=True)
    beside = SideBySide(2)
    batch = [torch.randn(5) for _ in range(8)]
    found = beside.losses(lambda part: losses(scale, scale, part), beside.parts_of(batch), [scale])
    with pytest.raises(ValueError, match="count alike"):
        found[0].backward()


def test_an_error_in_a_part_is_the_caller_s() -> None:
    def fails(part: Sequence[Tensor]) -> Tensor:
        raise ArithmeticError("no loss")

    beside = SideBySide(2)
    with pytest.raises(ArithmeticError, match="no loss"):
        beside.losses(fails, beside.parts_of([torch.ones(1)] * 8), [torch.ones(1, requires_grad=True)])
