"""The public names of the adapter and where each is defined; ``__init__.py`` reads this file."""

from .chat_memory import MPlusMemory as MPlusMemory
from .index import MPlusIndex as MPlusIndex
from .ingestion import MPlusWriter as MPlusWriter
from .llm import MPlusLLM as MPlusLLM
from .memory_block import MPlusMemoryBlock as MPlusMemoryBlock
from .retriever import MPlusIndexRetriever as MPlusIndexRetriever
from .synthesizer import MPlusSynthesizer as MPlusSynthesizer
