"""M+ for the frameworks people build with; importing one adapter needs only its framework."""

from importlib import import_module
from typing import Any

_HOME = {
    "MPlusChat": "mplus_integrations.langchain",
    "MPlusIndex": "mplus_integrations.llama_index",
    "MPlusLLM": "mplus_integrations.llama_index",
    "MPlusMemory": "mplus_integrations.llama_index",
    "MPlusMemoryBlock": "mplus_integrations.llama_index",
    "MPlusMemoryMiddleware": "mplus_integrations.langchain",
    "MPlusRetriever": "mplus_integrations.langchain",
    "MPlusStore": "mplus_integrations.langchain",
    "MPlusVectorStore": "mplus_integrations.langchain",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mplus_integrations' has no attribute {name!r}")
    return getattr(import_module(home), name)
