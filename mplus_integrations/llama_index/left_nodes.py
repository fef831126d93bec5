"""What filters and postprocessors have left of the nodes that a retriever found: which are in memory as they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llama_index.core.schema import NodeWithScore

from mplus import Memory
from mplus_integrations.llama_index.nodes import written_text


class LeftNodes(NamedTuple):
    """Nodes to read.

    Attributes:
        nodes: All of them, as they were left.
        as_text: Ids of those whose text is not the one in memory: it was masked or replaced, or never written.
    """

    nodes: list[NodeWithScore]
    as_text: frozenset[str]

    @classmethod
    def of(cls, nodes: Sequence[NodeWithScore], memory: Memory) -> "LeftNodes":
        """Compare nodes with a memory. One without text that was never written there is left out."""
        written = {source.name: "\n".join(source.texts) for source in memory.sources()}
        left = [one for one in nodes if one.node_id in written or written_text(one.node).strip()]
        changed = {one.node_id for one in left if written_text(one.node) != written.get(one.node_id)}
        unknown = {name for name, text in written.items() if not text}  # a text that was not kept
        return cls(left, frozenset(changed - unknown))

    @property
    def arguments(self) -> dict[str, Any]:
        """The ids of the nodes, and which of them are read as text, as ``MPlusSynthesizer`` passes them on."""
        return {"node_ids": [one.node_id for one in self.nodes], "as_text": self.as_text}
