"""Nodes in a memory: each is a separate source, with its text kept beside its latents."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode

from mplus import Memory, MPlus
from mplus_integrations.arguments import checked_once, checked_several
from mplus_integrations.latents import all_or_nothing
from mplus_integrations.sources import NODE, is_blank, refuse_marks, refuse_others, without_marks

logger = logging.getLogger(__name__)


def write_nodes(
    model: MPlus,
    memory: Memory,
    nodes: Sequence[BaseNode],
    *,
    show_progress: bool = False,
    time_key: str | None = None,
) -> list[str]:
    """Write the texts of nodes into a memory, all in one go; after an error none is written.

    Metadata is kept for filters and citations, and is not read: beside a short text a small model would answer with it.
    A node without text is left out, and the log names it. ``time_key`` is the key of metadata that says when a node was
    said.

    Returns:
        The ids of those that have text. Nodes that the memory holds already with the same text and metadata
        are not written again.

    Raises:
        ValueError: A node has the id of another one of them, or of something in this memory that is no node, such as a
            note; its document has an empty id; or it is no node at all.
    """
    nodes = checked_several(nodes, "nodes", BaseNode)
    check_ids(nodes)
    for node in nodes:
        refuse_marks(node.metadata, described(node))
    texts = checked_once([(node.node_id, (node, written_text(node))) for node in nodes], "nodes", _is_same)
    blank = [name for name, (_, text) in texts.items() if is_blank(text)]
    if blank:
        logger.warning("Nodes without text are left out: %s", ", ".join(map(described, (texts[n][0] for n in blank))))
    kept = {name: found for name, found in texts.items() if name not in blank}
    with memory.adding():
        refuse_others(memory, kept, NODE)
        known = memory.told()
        fresh = {name: found for name, found in kept.items() if not _has_node(known.get(name), *found)}
        replaced = fresh.keys() & known.keys()
        if not replaced:
            _write(model, memory, fresh, time_key, show_progress=show_progress)
            return list(kept)
        with all_or_nothing(memory) as fork:
            for name in sorted(replaced):
                fork.forget(name)
            _write(model, fork, fresh, time_key, show_progress=show_progress)
    return list(kept)


def _has_node(told: Any, node: BaseNode, text: str) -> bool:
    """Whether what was told under an id is this node: its text, with its metadata, of its document."""
    return told is not None and told.texts == (text,) and told.metadata == _about(node)


def _about(node: BaseNode) -> dict[str, Any]:
    """The metadata of a node in memory, with its document."""
    return {**node.metadata, NODE: node.ref_doc_id or ""}


def _is_same(one: tuple[BaseNode, str], other: tuple[BaseNode, str]) -> bool:
    return one[1] == other[1] and one[0].metadata == other[0].metadata


def _write(
    model: MPlus,
    memory: Memory,
    fresh: Mapping[str, tuple[BaseNode, str]],
    time_key: str | None,
    *,
    show_progress: bool,
) -> None:
    """Write nodes; several calls in a row go through the model together."""
    if fresh:
        model.write(
            memory,
            [text for _, text in fresh.values()],
            source=list(fresh),
            metadata=[_about(node) for node, _ in fresh.values()],
            keep_text=True,
            progress=show_progress,
            later=True,
            at=None if time_key is None else [node.metadata.get(time_key) for node, _ in fresh.values()],
        )


def check_metadata(nodes: Sequence[BaseNode]) -> None:
    """Check that metadata is what LlamaIndex's document stores can save: they keep nodes as JSON.

    Raises:
        ValueError: A value would come back as something else, or cannot be saved; or one of them is no node.
    """
    for node in checked_several(nodes, "nodes", BaseNode):
        refuse_marks(node.metadata, described(node))
        for key, value in node.metadata.items():
            try:
                is_kept = json.loads(json.dumps(value, allow_nan=False)) == value
            except (TypeError, ValueError, RecursionError):
                is_kept = False
            if not is_kept:
                raise ValueError(
                    f"Metadata {key!r:.60} of {described(node)} is {type(value).__name__}: an index keeps its nodes as "
                    "JSON, from which it would not come back. Give it as text, number, list or mapping of texts."
                )


def check_ids(nodes: Sequence[BaseNode]) -> None:
    """Check that nodes and their documents have ids by which they are found again, updated and deleted.

    Raises:
        ValueError: An id is empty.
    """
    for place, node in enumerate(nodes):
        if node.node_id == "" or node.ref_doc_id == "":
            raise ValueError(
                f"Number {place} ({written_text(node)!r:.40}) has the id '': expected at least one character, by which "
                "it can be updated and deleted. Leave the id out to have one made."
            )


def written_text(node: BaseNode) -> str:
    """The text of a node as it is written into memory."""
    return node.get_content(metadata_mode=MetadataMode.NONE)


def described(node: BaseNode) -> str:
    """A node for a message: its document if it has one, else its id, and where in a file it is."""
    known = [f"{key}={node.metadata[key]}" for key in ("file_name", "page_label") if key in node.metadata]
    return " ".join([node.ref_doc_id or node.node_id, *known])


def as_node(name: str, about: Mapping[str, Any], texts: Sequence[str]) -> TextNode:
    """A node made of a source in memory: of its metadata and its texts."""
    node = TextNode(id_=name, text="\n".join(texts), metadata=without_marks(about))
    document = about.get(NODE)
    if document:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return node
