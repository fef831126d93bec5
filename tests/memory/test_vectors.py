import pytest
import torch

from mplus.memory import vectors as module
from mplus.memory.vectors import ChunkVectors


def rows(count: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def filled(*serials: int, dtype: str = "float32") -> tuple[ChunkVectors, torch.Tensor]:
    made = rows(len(serials))
    return ChunkVectors("toy").append(torch.tensor(serials), made, dtype), made  # pyright: ignore[reportArgumentType]


def test_cosines_are_those_of_the_chunks_asked_for() -> None:
    held, made = filled(2, 3, 7)
    found = held.cosines(made[1], torch.tensor([7, 2]).sort().values)
    torch.testing.assert_close(found, made[[0, 2]] @ made[1])


@pytest.mark.parametrize(
    ("dtype", "stored"), [("int8", torch.int8), ("int4", torch.int8), ("bfloat16", torch.bfloat16)]
)
def test_they_are_kept_in_the_precision_of_retrieval_keys(dtype: str, stored: torch.dtype) -> None:
    exact, made = filled(0, 1, 2)
    held, _ = filled(0, 1, 2, dtype=dtype)
    assert held.blocks[0].vectors.dtype == stored
    assert held.nbytes < exact.nbytes
    everything = torch.arange(3)
    torch.testing.assert_close(held.cosines(made[0], everything), exact.cosines(made[0], everything), atol=0.02, rtol=0)


def test_blocks_fill_up_and_full_ones_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_CHUNKS", 4)
    held = ChunkVectors("toy")
    for start in range(0, 9, 3):
        before, held = held, held.append(torch.arange(start, start + 3), rows(3, start), "int8")
    assert [len(block) for block in held.blocks] == [4, 4, 1]
    assert held.blocks[0] is before.blocks[0]
    assert held.chunks.tolist() == list(range(9))


def test_vectors_of_earlier_chunks_are_sorted_in() -> None:
    held, made = filled(1, 4)
    more = held.append(torch.tensor([0, 2]), rows(2, 1), "float32")
    assert more.chunks.tolist() == [0, 1, 2, 4]
    torch.testing.assert_close(more.cosines(made[0], torch.tensor([1, 4])), made @ made[0])


def test_no_tensor_holds_a_dropped_vector() -> None:
    held, made = filled(0, 1, 2, 3)
    kept = held.keeping(torch.tensor([1, 3, 9]))
    assert kept.chunks.tolist() == [1, 3]
    assert kept.blocks[0].vectors.data.untyped_storage().nbytes() == 2 * 8 * 4
    torch.testing.assert_close(kept.cosines(made[3], torch.tensor([3])), torch.ones(1))
    assert held.keeping(torch.arange(4)) is held
    assert held.keeping(torch.tensor([], dtype=torch.int64)).blocks == ()
