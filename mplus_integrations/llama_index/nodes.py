"""Nodes in a memory: each is a source of its own, with its text beside its latents."""

from collections.abc import Sequence

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.utils import get_tqdm_iterable

from mplus import FoundSource, Memory, MPlus, Source
from mplus_integrations.whose_memory import all_or_nothing

NODE = "mplus_node"
"""Marks the sources of a memory that are nodes, and says of which document."""


def write_nodes(model: MPlus, memory: Memory, nodes: Sequence[BaseNode], *, show_progress: bool = False) -> list[str]:
    """Write nodes that have text into a memory, all of them or, after an error, none.

    Returns:
        Their ids. What was there already with the same text has not been written again.
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
    """A node as the memory kept it."""
    metadata = {key: value for key, value in source.metadata.items() if key != NODE}
    node = TextNode(id_=name, text="\n".join(source.texts), metadata=metadata)
    # What is written has its metadata in it already.
    node.excluded_llm_metadata_keys = node.excluded_embed_metadata_keys = list(metadata)
    document = source.metadata.get(NODE)
    if document:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return node
