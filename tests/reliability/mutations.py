"""Alter saved memories in every way that comes to mind, and open them.

    python -m tests.reliability.mutations FOLDER --count 500

Each must be refused as corrupt or open as it was, without a crash, within a limit on address space. Prints
JSON.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mplus import CorruptMemoryError, Memory, MemoryKey, MemoryKeyError, MemoryNotFoundError
from mplus.memory import saving
from mplus.storage.names import MANIFEST
from tests.reliability import states

EXTRA_BYTES = 2**28
"""Address space that opening an altered memory may take."""
ODD_VALUES: list[Any] = [None, -1, 2**63, 1e308, "", "text", [], {}, [[]], True, ["x"] * 3, {"a": 1}]
Alter = Callable[[Path, random.Random], None]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def shards(folder: Path) -> list[Path]:
    return [path for path in files(folder) if path.suffix in (".safetensors", ".sealed")]


def flip_a_bit(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def overwrite(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + rng.randrange(1, 200)] = rng.choice([b"\0", b"\xff", b"[", b"9"]) * 60
    path.write_bytes(data)


def cut(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    os.truncate(path, rng.randrange(path.stat().st_size))


def lengthen(folder: Path, rng: random.Random) -> None:
    with rng.choice(files(folder)).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def swap(folder: Path, rng: random.Random) -> None:
    first, second = rng.sample(files(folder), 2)
    first.rename(folder / "between")
    second.rename(first)
    (folder / "between").rename(second)


def remove(folder: Path, rng: random.Random) -> None:
    rng.choice(files(folder)).unlink()


def announce_a_huge_header(folder: Path, rng: random.Random) -> None:
    path = rng.choice(shards(folder))
    data = bytearray(path.read_bytes())
    start = 0 if path.suffix == ".safetensors" else MemoryKey.head_bytes
    data[start : start + 8] = rng.choice([2**20, 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
    path.write_bytes(data)
    if rng.random() < 0.5:
        reseal(folder, path)


def put_a_link(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    path.rename(folder / "elsewhere")
    path.symlink_to(rng.choice([folder / "elsewhere", Path("/etc/passwd"), Path("/dev/zero"), path, folder]))


def put_something_else(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    path.unlink()
    path.mkdir() if rng.random() < 0.5 else os.mkfifo(path)


def type_something_else(folder: Path, rng: random.Random) -> None:
    """A manifest whose checksum is right, with a value of another type in it."""
    manifest = manifest_of(folder)
    if manifest is None:
        return flip_a_bit(folder, rng)
    node, keys = manifest, []
    while isinstance(node, (dict, list)) and node and (not keys or rng.random() < 0.9):
        keys.append(rng.choice(list(node) if isinstance(node, dict) else range(len(node))))
        parent, node = node, node[keys[-1]]
    odd = rng.choice([value for value in ODD_VALUES if type(value) is not type(node)])
    parent[keys[-1]] = odd
    seal(folder, manifest)
    return None


def drop_a_field(folder: Path, rng: random.Random) -> None:
    """A manifest whose checksum is right, and something of it missing."""
    manifest = manifest_of(folder)
    if manifest is None:
        return remove(folder, rng)
    part = rng.choice([manifest, manifest["state"], manifest["files"], manifest["state"]["tracks"][0]])
    del part[rng.choice(list(part))]
    seal(folder, manifest)
    return None


def describe_other_tensors(folder: Path, rng: random.Random) -> None:
    """A shard whose checksum is right, and whose header says what is not so."""
    path = rng.choice(shards(folder))
    data = path.read_bytes()
    if path.suffix != ".safetensors" or manifest_of(folder) is None:
        return cut(folder, rng)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    change = rng.randrange(6)
    if change == 0:
        entry["shape"] = rng.choice([[2**40, 2**40], [-1, 4], [], [2**31], [1] * 20, ["4"], [0, 2**47], 7])
    elif change == 1:
        entry["data_offsets"] = rng.choice([[0, 2**60], [-8, 8], [8, 0], [0], "0", None, [0, 0]])
    elif change == 2:
        entry["dtype"] = rng.choice(["F128", "F64", "I64", None, 4, "BOOL"])
    elif change == 3:
        header["more"] = {"dtype": "F32", "shape": [2**44], "data_offsets": [0, 2**46]}
    elif change == 4:
        entry["shape"] = [n * 2 for n in entry["shape"]]
    else:
        header.pop(rng.choice(list(header)))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    reseal(folder, path)
    return None


def nest_deeply(folder: Path, rng: random.Random) -> None:
    path = rng.choice(files(folder))
    text = rng.choice([b"[", b'{"a":']) * 200_000
    if path.name == MANIFEST:
        body = text + b"}"
        digest = hashlib.sha256(text).hexdigest()
        path.write_bytes(f'{{"format":2,"sha256":"{digest}","memory":'.encode() + body)
    else:
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        reseal(folder, path)


KINDS: list[Alter] = [
    flip_a_bit,
    flip_a_bit,
    overwrite,
    cut,
    lengthen,
    swap,
    remove,
    announce_a_huge_header,
    put_a_link,
    put_something_else,
    type_something_else,
    type_something_else,
    drop_a_field,
    describe_other_tensors,
    describe_other_tensors,
    nest_deeply,
]


# --- forging ------------------------------------------------------------------------------------------


def manifest_of(folder: Path) -> Any:
    """What a plain manifest of the present format says."""
    described = json.loads((folder / MANIFEST).read_text())
    return described["memory"] if described.get("format") == 2 and "memory" in described else None


def seal(folder: Path, manifest: Any) -> None:
    """Write a manifest with the right checksum."""
    body = json.dumps(manifest).encode()
    head = f'{{"format":2,"sha256":"{hashlib.sha256(body).hexdigest()}","memory":'.encode()
    (folder / MANIFEST).write_bytes(head + body + b"}\n")


def reseal(folder: Path, path: Path) -> None:
    """Make the manifest say of a shard what would be right if the shard were."""
    manifest = manifest_of(folder)
    if manifest is None or path.name not in manifest["files"]:
        return
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        start, stop = header["checksums"]["data_offsets"]
        tail = data[8 + length + start : 8 + length + stop]
    except (ValueError, KeyError, TypeError, RecursionError):
        tail = b""
    digest = hashlib.sha256(data[: 8 + length] + tail).hexdigest()
    manifest["files"][path.name] = {"nbytes": len(data), "sha256": digest}
    seal(folder, manifest)


# --- the run ------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, key = states.model(), MemoryKey(b"k" * 32)
    memory = model.new_memory()
    model.write(memory, states.text(1, 12), source="a", metadata={"page": 3}, keep_text=True)
    model.write(memory, "Hi!", source="tail")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    bases = {"plain": None, "lazily checked": None, "encrypted": key}
    for name, its_key in bases.items():
        memory.save(arguments.folder / name, key=its_key)
    hashes = {name: states.hash_of(Memory.load(arguments.folder / name, model, key=k)) for name, k in bases.items()}

    # Shapes that a file merely claims must never be allocated.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, resource.RLIM_INFINITY))
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    started = time.perf_counter()
    for number in range(arguments.count):
        rng = random.Random(arguments.seed * 1_000_003 + number)
        alter, name = (
            KINDS[number % len(KINDS)],
            rng.choice(["plain", "plain", "lazily checked", "encrypted"]),
        )
        folder = arguments.folder / "altered"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(arguments.folder / name, folder)
        alter(folder, rng)
        saving.VERIFIED_BYTES = 0 if name == "lazily checked" else 2**26
        try:
            # Reading everything is part of it: what was not checked when it was opened is checked then.
            same = states.hash_of(Memory.load(folder, model, key=bases[name])) == hashes[name]
            outcome = "opened as it was" if same else "WRONG: opened as something else"
        except CorruptMemoryError:
            outcome = "refused"
        except MemoryKeyError:  # an encrypted manifest that was exchanged for a plain one
            outcome = "refused" if name == "encrypted" else "WRONG: asks for a key"
        except MemoryNotFoundError:
            outcome = "WRONG: not found" if os.path.lexists(folder / MANIFEST) else "refused"
        except Exception as error:
            outcome = f"WRONG: {error!r:.300}"
        outcomes[outcome.partition(":")[0]] += 1
        if outcome.startswith("WRONG"):
            wrong.append(f"{number} {alter.__name__} on {name}: {outcome}")
    print(json.dumps({"outcomes": dict(outcomes), "wrong": wrong, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
