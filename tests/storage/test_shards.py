import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mplus import CorruptMemoryError, MemoryKey
from mplus.storage import blocks
from mplus.storage.shards import OpenShard, shard_bytes, write_shard

TENSORS = {
    "wide": torch.randn(37, 2, 8),
    "bytes": torch.randint(-128, 128, (300, 5), dtype=torch.int8),
    "half": torch.randn(11, 3).to(torch.bfloat16),
    "numbers": torch.arange(50),
    "truth": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)


def written(folder: Path, seal: MemoryKey | None) -> OpenShard:
    path = folder / "tokens-x"
    with path.open("wb") as file:
        known = write_shard(file, path.name, TENSORS, seal)
    assert known.nbytes == path.stat().st_size == shard_bytes(TENSORS, seal)
    return OpenShard(path, known, key=seal)


@pytest.mark.parametrize("seal", [None, MemoryKey(b"k" * 32)])
def test_tensors_and_any_of_their_rows_come_back(tmp_path: Path, seal: MemoryKey | None) -> None:
    shard = written(tmp_path, seal)
    assert shard.table.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(shard.whole(name), tensor)
        assert torch.equal(shard.rows(name, slice(1, 3)), tensor[1:3])
        if len(tensor):
            index = torch.tensor([len(tensor) - 1, 0, len(tensor) // 2, 0])
            assert torch.equal(shard.rows(name, index), tensor[index])
        assert torch.equal(shard.rows(name, torch.empty(0, dtype=torch.int64)), tensor[:0])
    shard.tensors()


@pytest.mark.parametrize("seal", [None, MemoryKey(b"k" * 32)])
def test_rows_that_were_asked_for_ahead_come_as_they_are(tmp_path: Path, seal: MemoryKey | None) -> None:
    shard = written(tmp_path, seal)
    for name, tensor in TENSORS.items():
        rows = torch.arange(0, len(tensor), 7)
        for index in (rows, slice(2, 40), slice(0, 0)):
            shard.prefetch(name, index)
            assert torch.equal(shard.rows(name, index), tensor[index])
            shard.prefetch(name, index)


def test_a_file_records_the_size_of_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, None).path
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4096)
    again = OpenShard(path, None)
    again.tensors()
    assert torch.equal(again.rows("bytes", slice(30, 90)), TENSORS["bytes"][30:90])
    header = path.read_bytes().replace(b'"block_bytes":"64"', b'"block_bytes":"-4"')
    path.write_bytes(header)
    with pytest.raises(CorruptMemoryError, match="header"):
        OpenShard(path, None)


def test_a_plain_shard_is_a_safetensors_file(tmp_path: Path) -> None:
    shard = written(tmp_path, None)
    read = load_file(shard.path)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("seal", [None, MemoryKey(b"k" * 32)])
def test_an_altered_block_is_noticed_when_it_is_used_and_no_other_is(tmp_path: Path, seal: MemoryKey | None) -> None:
    shard = written(tmp_path, seal)
    row = TENSORS["bytes"][200].numpy().tobytes()
    data = bytearray(shard.path.read_bytes())
    at = data.find(row) if seal is None else len(data) - 900
    data[at] ^= 1
    with shard.path.open("r+b") as file:
        file.write(data)
    again = OpenShard(shard.path, None, key=seal)
    with pytest.raises(CorruptMemoryError, match="altered"):
        again.tensors()
    if seal is None:
        assert torch.equal(again.rows("bytes", torch.tensor([0, 1])), TENSORS["bytes"][:2])
        with pytest.raises(CorruptMemoryError, match="altered"):
            again.rows("bytes", torch.tensor([0, 200]))


def test_shards_are_written_to_anything_that_takes_bytes() -> None:
    class Stream:
        def __init__(self) -> None:
            self.held = io.BytesIO()

        def write(self, data, /) -> int:
            return self.held.write(data)

    stream = Stream()
    known = write_shard(stream, "x", TENSORS, None)
    assert len(stream.held.getvalue()) == known.nbytes
