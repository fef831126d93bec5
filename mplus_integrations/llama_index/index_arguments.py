"""The arguments of an index, of its engines and of its retriever, and ours for those of other classes."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.query_engine import RetrieverQueryEngine

from mplus_integrations.settings import instead_where

MAKING = frozenset(
    {"nodes", "llm", "memory", "store", "memory_key", "embed_model", "storage_context", "show_progress", "time_key"}
)
PASSED_ON = frozenset({"objects", "callback_manager", "transformations"})
RETRIEVER = frozenset({"similarity_top_k", "filters", "node_ids", "doc_ids", "since", "until", "as_of"})
LATENT_ENGINE = frozenset({"node_postprocessors", "callback_manager", "streaming", "output_cls"})
TEXT_ENGINE = frozenset(inspect.signature(RetrieverQueryEngine.from_args).parameters) - {"retriever", "llm", "kwargs"}
OF_DOCUMENTS = "MPlusIndex(store=mplus.MemoryStore(folder), memory_key=…)"
OF_CONVERSATIONS = "memory=MPlusMemory.from_defaults(store=mplus.MemoryStore(folder), memory_key=…)"
INSTEAD_OF_SEARCH = {
    "similarity_cutoff": "node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=…)]",
    "where": "filters",
    "top_k": "similarity_top_k",
    "k": "similarity_top_k",
    **dict.fromkeys(
        ("persist_directory", "collection_name"), "MPlusIndex(store=mplus.MemoryStore(folder), memory_key=…)"
    ),
    **dict.fromkeys(
        ("session_id", "chat_store"), "as_chat_engine(memory=MPlusMemory.from_defaults(store=…, memory_key=…))"
    ),
    "max_new_tokens": "llm=MPlusLLM(max_tokens=…)",
    "max_tokens": "llm=MPlusLLM(max_tokens=…)",
}
INSTEAD_OF_CHAT = {
    **INSTEAD_OF_SEARCH,
    **dict.fromkeys(
        ("chat_store", "chat_store_key", "session_id", "user_id", "persist_directory", "store", "memory_key"),
        OF_CONVERSATIONS,
    ),
    "chat_memory": "memory",
    "collection_name": OF_DOCUMENTS,
}
INSTEAD_OF_INDEX = {
    **instead_where(MAKING),
    "persist_dir": "MPlusIndex.load(folder) to open a saved index, and storage_context.persist(folder) to save one",
    "persist_directory": "store=mplus.MemoryStore(folder) with memory_key=, or persist(folder)",
    "collection_name": "memory_key= with store=mplus.MemoryStore(folder)",
    "index_name": "memory_key= with store=mplus.MemoryStore(folder)",
    "vector_store": "store=mplus.MemoryStore(folder) with memory_key=",
    "service_context": "llm=MPlusLLM()",
}
"""Ours for arguments of other indices."""
CHAT = frozenset({"memory", "chat_history", "system_prompt"})
FOUND = RETRIEVER | {"node_postprocessors"}
CHAT_OF_MODE = {
    ChatMode.SIMPLE: CHAT,
    ChatMode.BEST: CHAT | FOUND | {"verbose"},
    ChatMode.CONTEXT: CHAT | FOUND | {"verbose"},
    ChatMode.CONDENSE_PLUS_CONTEXT: CHAT | FOUND | {"verbose", "condense_prompt"},
    ChatMode.CONDENSE_QUESTION: CHAT | FOUND | {"verbose", "condense_question_prompt"},
}
"""What each mode of a chat engine takes."""
ONE_CALL = frozenset({"verbose", "use_async"})
ABOUT_TEXT = frozenset(
    {
        *("context_prompt", "context_refine_prompt", "context_template", "prefix_messages"),
        *(TEXT_ENGINE - LATENT_ENGINE - ONE_CALL - {"response_synthesizer"}),
    }
)
"""Arguments that say how text is put into prompts."""


def given(kwargs: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Arguments without those that ask for the default."""
    return {n: v for n, v in kwargs.items() if n not in known or not (v is None or v is False)}


def refuse_about_text(kwargs: Mapping[str, Any], instead: str) -> None:
    """Refuse arguments that have no meaning for answers from latents.

    Raises:
        ValueError: There is one.
    """
    if about_text := sorted(kwargs.keys() & ABOUT_TEXT):
        raise ValueError(
            f"{about_text[0]}= says how text is put into prompts, and answers from latents have none in them. "
            f"Leave it out, {instead}."
        )
    if "use_async" in kwargs:
        raise ValueError(
            "use_async=True: an answer from latents is one call of the LLM. Leave it out, or await aquery."
        )
