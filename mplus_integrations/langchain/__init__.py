"""M+ for LangChain: chat model, vector store, retriever, memory and store for agents.

Only what is asked for is imported: the chat model and the stores need ``langchain-core``, the middleware
and the LangGraph store need ``langchain``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mplus_integrations.langchain.chat_model import MPlusChat
    from mplus_integrations.langchain.langgraph_store import MPlusStore
    from mplus_integrations.langchain.middleware import MPlusMemoryMiddleware, memory_tools
    from mplus_integrations.langchain.vectorstore import MPlusRetriever, MPlusVectorStore

_HOME = {
    "MPlusChat": "chat_model",
    "MPlusMemoryMiddleware": "middleware",
    "MPlusRetriever": "vectorstore",
    "MPlusStore": "langgraph_store",
    "MPlusVectorStore": "vectorstore",
    "memory_tools": "middleware",
}

__all__ = ["MPlusChat", "MPlusMemoryMiddleware", "MPlusRetriever", "MPlusStore", "MPlusVectorStore", "memory_tools"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mplus_integrations.langchain' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
