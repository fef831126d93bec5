"""M+ for LlamaIndex: an LLM that remembers, memory for agents and chat engines, and an index that embeds nothing.

Only what is asked for is imported; all of it needs ``llama-index-core`` and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mplus_integrations.llama_index.chat_memory import MPlusMemory, MPlusMemoryBlock
    from mplus_integrations.llama_index.index import MPlusIndex
    from mplus_integrations.llama_index.ingestion import MPlusWriter
    from mplus_integrations.llama_index.llm import MPlusLLM
    from mplus_integrations.llama_index.retriever import MPlusIndexRetriever
    from mplus_integrations.llama_index.synthesizer import MPlusSynthesizer

_HOME = {
    "MPlusIndex": "index",
    "MPlusIndexRetriever": "retriever",
    "MPlusLLM": "llm",
    "MPlusMemory": "chat_memory",
    "MPlusMemoryBlock": "chat_memory",
    "MPlusSynthesizer": "synthesizer",
    "MPlusWriter": "ingestion",
}

__all__ = [
    "MPlusIndex",
    "MPlusIndexRetriever",
    "MPlusLLM",
    "MPlusMemory",
    "MPlusMemoryBlock",
    "MPlusSynthesizer",
    "MPlusWriter",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mplus_integrations.llama_index' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
