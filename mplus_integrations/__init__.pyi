"""The adapters by name; ``__init__.py`` reads this file."""

from .langchain import MPlusChat as MPlusChat
from .langchain import MPlusMemoryMiddleware as MPlusMemoryMiddleware
from .langchain import MPlusRetriever as MPlusRetriever
from .langchain import MPlusStore as MPlusStore
from .langchain import MPlusVectorStore as MPlusVectorStore
from .llama_index import MPlusIndex as MPlusIndex
from .llama_index import MPlusLLM as MPlusLLM
from .llama_index import MPlusMemory as MPlusMemory
from .llama_index import MPlusMemoryBlock as MPlusMemoryBlock
from .llama_index import MPlusWriter as MPlusWriter
