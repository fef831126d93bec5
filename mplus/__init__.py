"""Latent long-term memory for language models.

    import mplus

    model = mplus.MPlus.from_pretrained("smol-135m")
    memory = model.new_memory()
    model.write(memory, "My dog is called Biscuit.", source="notes")
    print(model.generate(memory, [{"role": "user", "content": "What is my dog called?"}]).text)

Names are imported when they are first used: ``import mplus`` itself loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mplus.checkpoint.catalog import pull
    from mplus.confidence import Calibration, Evidence, fit_calibration
    from mplus.config import MemoryConfig
    from mplus.errors import (
        CheckpointError,
        CorruptMemoryError,
        DownloadError,
        LedgerMissingError,
        MemoryKeyError,
        MemoryLimitError,
        MemoryLockedError,
        MemoryMismatchError,
        MemoryNotFoundError,
        MemorySaveError,
        ModelNotFoundError,
        MPlusError,
        PromptTooLongError,
        QueueFullError,
        SchedulerClosedError,
        UnknownNameError,
        UnsupportedModelError,
    )
    from mplus.generation.constrain import Constraint, ToolCall, parse_tool_calls
    from mplus.generation.engine import Generation, RecalledSource
    from mplus.generation.sampling import SamplingParams
    from mplus.generation.scheduler import Scheduler
    from mplus.generation.streams import AsyncGenerationStream, GenerationStream
    from mplus.generation.where import FoundSource
    from mplus.memory.history import MemoryDiff, Snapshot
    from mplus.memory.memory import Memory
    from mplus.memory.sources import Source, SourceTokens
    from mplus.memory.stats import MemoryStats
    from mplus.memory.store import MemoryStore, StoredMemory
    from mplus.model import MPlus
    from mplus.storage.encryption import MemoryKey
    from mplus.storage.vault import KeyVault
    from mplus.write.absorb import WriteReport

_HOMES = {
    "mplus.checkpoint.catalog": ("pull",),
    "mplus.confidence": ("Calibration", "Evidence", "fit_calibration"),
    "mplus.config": ("MemoryConfig",),
    "mplus.errors": (
        "CheckpointError",
        "CorruptMemoryError",
        "DownloadError",
        "LedgerMissingError",
        "MPlusError",
        "MemoryKeyError",
        "MemoryLimitError",
        "MemoryLockedError",
        "MemoryMismatchError",
        "MemoryNotFoundError",
        "MemorySaveError",
        "ModelNotFoundError",
        "PromptTooLongError",
        "QueueFullError",
        "SchedulerClosedError",
        "UnknownNameError",
        "UnsupportedModelError",
    ),
    "mplus.generation.constrain": ("Constraint", "ToolCall", "parse_tool_calls"),
    "mplus.generation.engine": ("Generation", "RecalledSource"),
    "mplus.generation.sampling": ("SamplingParams",),
    "mplus.generation.scheduler": ("Scheduler",),
    "mplus.generation.where": ("FoundSource",),
    "mplus.generation.streams": ("AsyncGenerationStream", "GenerationStream"),
    "mplus.storage.encryption": ("MemoryKey",),
    "mplus.memory.store": ("MemoryStore", "StoredMemory"),
    "mplus.storage.vault": ("KeyVault",),
    "mplus.memory.history": ("MemoryDiff", "Snapshot"),
    "mplus.memory.memory": ("Memory",),
    "mplus.memory.sources": ("Source", "SourceTokens"),
    "mplus.memory.stats": ("MemoryStats",),
    "mplus.model": ("MPlus",),
    "mplus.write.absorb": ("WriteReport",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AsyncGenerationStream",
    "Calibration",
    "CheckpointError",
    "Constraint",
    "CorruptMemoryError",
    "DownloadError",
    "Evidence",
    "FoundSource",
    "Generation",
    "GenerationStream",
    "KeyVault",
    "LedgerMissingError",
    "MPlus",
    "MPlusError",
    "Memory",
    "MemoryConfig",
    "MemoryDiff",
    "MemoryKey",
    "MemoryKeyError",
    "MemoryLimitError",
    "MemoryLockedError",
    "MemoryMismatchError",
    "MemoryNotFoundError",
    "MemorySaveError",
    "MemoryStats",
    "MemoryStore",
    "ModelNotFoundError",
    "PromptTooLongError",
    "QueueFullError",
    "RecalledSource",
    "SamplingParams",
    "Scheduler",
    "SchedulerClosedError",
    "Snapshot",
    "Source",
    "SourceTokens",
    "StoredMemory",
    "ToolCall",
    "UnknownNameError",
    "UnsupportedModelError",
    "WriteReport",
    "fit_calibration",
    "parse_tool_calls",
    "pull",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mplus' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
