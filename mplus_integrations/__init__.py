"""M+ for the frameworks people build with; importing one adapter needs only its framework."""

from importlib import import_module
from typing import Any

_HOME = {
    "MPlusChat": "mplus_integrations.langchain",
    "MPlusMemoryMiddleware": "mplus_integrations.langchain",
    "MPlusRetriever": "mplus_integrations.langchain",
    "MPlusVectorStore": "mplus_integrations.langchain",
}

__all__ = ["MPlusChat", "MPlusMemoryMiddleware", "MPlusRetriever", "MPlusVectorStore"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mplus_integrations' has no attribute {name!r}")
    return getattr(import_module(home), name)
