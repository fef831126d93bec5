"""What filters and postprocessors have left of the nodes that a retriever found: which are in memory as they are."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.schema import NodeWithScore

from mplus import Memory
from mplus_integrations.llama_index.nodes import described, written_text
from mplus_integrations.llama_index.text_room import TextRoom
from mplus_integrations.sources import is_blank

logger = logging.getLogger(__name__)


class LeftNodes(NamedTuple):
    """Nodes to read.

    Attributes:
        nodes: All of them, as they were left.
        as_text: By id the texts that are not the ones in memory: masked or replaced, or never written. Metadata is no
            part of them, as it is none of what is written.
        unread: Ids of nodes that were given and are read neither as text nor as latents.
    """

    nodes: list[NodeWithScore]
    as_text: Mapping[str, str]
    unread: frozenset[str]

    @classmethod
    def of(
        cls,
        nodes: Sequence[NodeWithScore],
        memory: Memory,
        known: Collection[str] = (),
        room: TextRoom | None = None,
    ) -> "LeftNodes":
        """Compare nodes with a memory.

        Left out are nodes without text, and those that are ``known`` to have been written and that memory has no
        longer: they were forgotten. Where there is no more ``room`` for text, a node is left with the part of it that
        is read, and those after it are left out; the log names them.
        """
        told = memory.told()
        written = {one.node_id: "\n".join(told[one.node_id].texts) for one in nodes if one.node_id in told}
        not_kept = {name for name, text in written.items() if not text}  # what cannot be compared is read as latents
        gone = {one.node_id for one in nodes if one.node_id in known} - written.keys()
        has_text = [one for one in nodes if one.node_id in not_kept or not is_blank(written_text(one.node))]
        left = [one for one in has_text if one.node_id not in gone]
        changed = {one.node_id for one in left if written_text(one.node) != written.get(one.node_id)} - not_kept
        as_text: dict[str, list[str]] = {}
        shown: list[NodeWithScore] = []
        for one in left:
            if one.node_id in changed:
                text = written_text(one.node)
                kept = text if room is None else room.take(text)
                if not kept:
                    continue
                if kept != text:
                    one = _with_text(one, kept)
                as_text.setdefault(one.node_id, []).append(kept)
            shown.append(one)
        if short := [one for one in left if all(one.node_id != other.node_id for other in shown)]:
            names = ", ".join(described(one.node) for one in short)
            logger.warning("There is no room in the prompt for the texts of %s: they are not read.", names)
        left = shown
        unread = {one.node_id for one in nodes} - {one.node_id for one in left}
        return cls(left, {name: "\n\n".join(texts) for name, texts in as_text.items()}, frozenset(unread))

    @property
    def as_latents(self) -> frozenset[str]:
        """Ids of the nodes whose latents are read."""
        return frozenset(one.node_id for one in self.nodes) - self.as_text.keys()

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``MPlusSynthesizer`` passes on: the ids of the nodes, the texts to show, and the ids not to read."""
        return {"node_ids": [one.node_id for one in self.nodes], "as_text": self.as_text, "unread": self.unread}


def _with_text(found: NodeWithScore, text: str) -> NodeWithScore:
    node = found.node.model_copy()
    node.set_content(text)
    return NodeWithScore(node=node, score=found.score)
