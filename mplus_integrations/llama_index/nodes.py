"""Nodes in a memory: each is a separate source, with its text kept beside its latents."""

from collections.abc import Sequence

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.utils import get_tqdm_iterable

from mplus import FoundSource, Memory, MPlus, Source
from mplus_integrations.whose_memory import all_or_nothing

NODE = "mplus_node"
"""Metadata key of sources that are nodes; its value names their document."""


def write_nodes(model: MPlus, memory: Memory, nodes: Sequence[BaseNode], *, show_progress: bool = False) -> list[str]:
    """Write nodes that have text into a memory; after an error none is written.

    Returns:
        Their ids. Nodes that the memory holds already with the same text are not written again.
    """
    ids: list[str] = []
    with all_or_nothing(memory) as fork:
        known = {source.name: source.texts for source in memory.sources()}
        for node in get_tqdm_iterable(nodes, show_progress, "Writing into memory"):
            text = node.get_content(metadata_mode=MetadataMode.LLM)
            if not node.get_content(metadata_mode=MetadataMode.NONE).strip():
                continue
            ids.append(node.node_id)
            if known.get(node.node_id) == (text,):
                continue
            fork.forget(node.node_id)
            metadata = {**node.metadata, NODE: node.ref_doc_id or ""}
            model.write(fork, text, source=node.node_id, metadata=metadata, keep_text=True)
            known[node.node_id] = (text,)
    return ids


def as_node(name: str, source: Source | FoundSource) -> TextNode:
    """A node made of a source in memory."""
    metadata = {key: value for key, value in source.metadata.items() if key != NODE}
    node = TextNode(id_=name, text="\n".join(source.texts), metadata=metadata)
    # The written text contains the node's metadata already.
    node.excluded_llm_metadata_keys = node.excluded_embed_metadata_keys = list(metadata)
    document = source.metadata.get(NODE)
    if document:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return node
