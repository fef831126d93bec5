"""The public names of the adapter and where each is defined; ``__init__.py`` reads this file."""

from .agent_tools import memory_tools as memory_tools
from .chat_model import MPlusChat as MPlusChat
from .langgraph_store import MPlusStore as MPlusStore
from .middleware import MPlusMemoryMiddleware as MPlusMemoryMiddleware
from .retriever import MPlusRetriever as MPlusRetriever
from .vectorstore import MPlusVectorStore as MPlusVectorStore
