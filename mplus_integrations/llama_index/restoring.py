"""The latents of an index that was persisted."""

from pathlib import Path

from llama_index.core.storage import StorageContext

from mplus import (
    Memory,
    MemoryMismatchError,
    MemoryNotFoundError,
    MPlus,
)
from mplus_integrations.latents import Latents
from mplus_integrations.llama_index.index_storage import (
    MPlusStruct,
    saved_folder,
)
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.nodes import NODE, write_nodes, written_text


def restored(
    llm: MPlusLLM, struct: MPlusStruct, storage_context: StorageContext, persist_dir: str | Path | None
) -> Latents:
    """The latents of a persisted index; written again from its text if they are missing or of another model."""
    model = llm.loaded
    folder = saved_folder(storage_context, struct.index_id, persist_dir)
    if folder is not None:
        try:
            memory = Memory.load(folder, model)
            if _holds(memory, struct, storage_context):
                return Latents(memory=_as_embedded(memory, model))
        except (MemoryNotFoundError, MemoryMismatchError):  # moved, or now read by another model
            pass
    memory = model.new_memory()
    write_nodes(model, memory, storage_context.docstore.get_nodes(list(struct.nodes)), time_key=struct.time_key)
    return Latents(memory=memory)


def _holds(memory: Memory, struct: MPlusStruct, storage_context: StorageContext) -> bool:
    """Whether a memory has the nodes of an index with their present text."""
    texts = {name: told.texts for name, told in memory.told().items() if NODE in told.metadata}
    nodes = {node.node_id: node for node in storage_context.docstore.get_nodes(list(struct.nodes), raise_error=False)}
    return texts.keys() == struct.nodes.keys() and all(texts[n] == (written_text(node),) for n, node in nodes.items())


def _as_embedded(memory: Memory, model: MPlus) -> Memory:
    """A memory with vectors for all chunks, if the model has an embedder that the memory was written without."""
    recall = model.memory_config.recall
    if recall == f"embedding+{memory.config.recall}":
        return model.with_recall(memory, recall)
    return memory
