"""What a fork, a snapshot and a rollback of a large memory cost.

    python benchmarks/forks.py [--tokens 262144] [--json forks.json]

Bytes that a fork has for itself, counted over the storage of every tensor it reaches: before it diverges, after one
more turn of a conversation, and after forgetting a source. Resident memory that 1,000 forks take; seconds of each.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from snapshots import TURN, filled, resident_bytes, seconds

import mplus


def storages(value: object) -> Iterator[tuple[int, int]]:
    """Address and bytes of the storage of every tensor in a value."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from storages(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from storages(item)


def own_bytes(memory: mplus.Memory, origin: mplus.Memory) -> int:
    """Bytes of tensors that a memory does not share with another."""
    theirs = dict(storages(origin.state))
    return sum(nbytes for address, nbytes in dict(storages(memory.state)).items() if address not in theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--tokens", type=int, default=2**18)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model)
    memory = filled(model, arguments.tokens)
    model.write(memory, "The key is under the third flowerpot by the door. " * 4, source="letter")
    forks = [memory.fork()]
    fork, before = forks[0], resident_bytes()
    found: dict[str, Any] = {"memory": repr(memory), "memory bytes": memory.nbytes}
    found["1,000 forks, seconds"] = seconds(lambda: forks.extend(memory.fork() for _ in range(1000)))
    found["1,000 forks, resident bytes each"] = (resident_bytes() - before) / 1000
    found["fork, own tensor bytes"] = own_bytes(fork, memory)
    found["1,000 snapshots, seconds"] = seconds(lambda: [fork.snapshot() for _ in range(1000)])
    found["one more turn, seconds"] = seconds(lambda: model.write(fork, TURN, source="turn"))
    found["after one more turn, own tensor bytes"] = own_bytes(fork, memory)
    found["forget a source, seconds"] = seconds(lambda: memory.fork().forget("letter"))
    forgot = memory.fork()
    forgot.forget("letter")
    found["after forgetting, own tensor bytes"] = own_bytes(forgot, memory)
    found["rollback, seconds"] = seconds(lambda: fork.rollback(fork.snapshots[0].id))
    found["after rollback, own tensor bytes"] = own_bytes(fork, memory)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
