"""Arguments of ``MPlusMemory.from_defaults``, and what to write instead of those of LlamaIndex's memories."""

from mplus import Memory
from mplus_integrations.latents import Latents
from mplus_integrations.settings import INSTEAD
from mplus_integrations.sources import NODE

INSTEAD_OF_MEMORY = {
    **INSTEAD,
    "chat_store": "store=mplus.MemoryStore(folder)",
    "chat_store_key": "memory_key",
    "memory_blocks": "nothing: the LLM reads all turns as latents",
    "async_database_uri": "store=mplus.MemoryStore(folder)",
    "table_name": "memory_key",
    "thread_id": "conversation_id",
    "token_flush_size": "prompt_turns",
    "chat_history_token_ratio": "prompt_turns",
    "tokenizer_fn": "nothing: the model's own tokenizer counts",
    "persist_directory": "store=mplus.MemoryStore(folder)",
}
"""Ours for arguments of LlamaIndex's memories."""

FROM_DEFAULTS = frozenset(
    {"chat_history", "llm", "memory", "store", "memory_key", "conversation_id", "prompt_turns", "token_limit"}
)
"""Arguments of ``MPlusMemory.from_defaults``."""


def refuse_documents(latents: Latents, given: Memory | Latents) -> None:
    """Refuse latents that hold the documents of an index.

    Raises:
        ValueError: They do.
    """
    held = isinstance(given, Memory) and any(NODE in source.metadata for source in given.sources())
    if latents.is_of_index or held:
        raise ValueError(
            "memory= holds the documents of an index: turns written there would be read by all who read it. Read them "
            "beside the conversation: index.as_chat_engine(memory=…), or an LLM with MPlusLLM(shared=index.latents)."
        )
