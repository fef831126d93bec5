"""Make the saves of a release that later versions have to open: ``python -m tests.memory.make_saved FOLDER``.

Run once for a release that changes what is written, and kept: what such a save says must never change its meaning.
"""

import json
import sys
from pathlib import Path

from mplus import KeyVault, MemoryConfig, MemoryStore
from mplus.testing import tiny_model

CONFIG = MemoryConfig(
    chunk_tokens=16,
    minimum_chunk_tokens=8,
    tokens_per_write=16,
    short_term_tokens=32,
    recalled_tokens=32,
    consolidate_every=2,
)
TOLD = " ".join(f"Box {i} is {'red' if i % 3 else 'blue'}." for i in range(6))
MASTER = b"m" * 32


def main() -> None:
    folder = Path(sys.argv[1])
    model = tiny_model(memory=CONFIG, num_hidden_layers=2)
    facts: dict[str, str] = {}
    for name, config in (("plain", CONFIG), ("aged", CONFIG.model_copy(update={"age_limit_seconds": 1e9}))):
        memory = model.new_memory(seed=4, config=config)
        model.write(memory, TOLD, source="a", metadata={"page": 3}, keep_text=True)
        memory.snapshot("before b")
        model.write(memory, "Something else that is said.", source="b")
        facts[name] = memory.fingerprint
        MemoryStore(folder / "plain").put(name, memory)
        MemoryStore(folder / "sealed", vault=KeyVault(folder / "keys", master=MASTER)).put(name, memory)
        memory.export(folder / f"{name}.mplus")
    MemoryStore(folder / "plain").backup(folder / "backup")
    for path in list(folder.rglob(".*lock")):
        path.unlink()
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
