"""Nodes that an answer reads beside those that were found for its question."""

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.schema import NodeWithScore, QueryBundle

from mplus_integrations.latents import Latents
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.nodes import as_node
from mplus_integrations.sources import NODE

SAID = ("used_memory", "confidence", "is_calibrated", "abstained")
"""What the metadata of a response say about its answer."""
OWN = "mplus"
"""Where they say it, beside what they say of each node."""


class Citing:
    """Adds to a response the nodes that its answer has read and that it does not cite yet, and whether it read memory.

    An answer reads what recall brings for it, which may be more than the nodes that a retriever found. Those follow the
    ones that were found, the most relevant first. A streamed response has them once it is read to its end.

    Args:
        llm: What answers.
        latents: The memory with the nodes.
        query: The question, which says how relevant a node is.
        found: The nodes that were found, where a chat engine returns this list: what is read is added to it, too.
    """

    def __init__(
        self, llm: MPlusLLM, latents: Latents, query: str | QueryBundle, *, found: list[NodeWithScore] | None = None
    ) -> None:
        self._llm, self._latents, self._found = llm, latents, found
        self._query = query if isinstance(query, str) else query.query_str
        self._read: dict[str, NodeWithScore] = {}
        self._said: dict[str, Any] = {}
        self._response: RESPONSE_TYPE | None = None

    def hear(self, about: Mapping[str, Any]) -> None:
        """Take note of an answer; of several, one that refines another, the last counts, and what any has read.

        Args:
            about: What ``raw`` of a response of the LLM holds.
        """
        used = bool(about["used_memory"] or self._said.get("used_memory"))
        self._said = {name: about[name] for name in SAID} | {"used_memory": used}
        self._look_up({one["source"] for one in about["recalled"] if NODE in one["metadata"]} - self._read.keys())
        if self._response is not None:
            self._add(self._response)

    def _look_up(self, names: set[str]) -> None:
        """Find the nodes of some names."""
        if not names:
            return
        model = self._llm.loaded
        memory = self._latents.read(model)
        where = lambda name, about: name in names and NODE in about
        for one in model.search(memory, self._query, limit=len(names), where=where):
            node = as_node(one.source, one.metadata, one.texts)
            self._read[one.source] = NodeWithScore(node=node, score=one.score)

    def cited_in(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """The response, with what its answer has read, or will have read at its end."""
        self._response = response
        self._add(response)
        return response

    def _add(self, response: RESPONSE_TYPE) -> None:
        for nodes in [response.source_nodes, *([] if self._found is None else [self._found])]:
            known = {one.node_id for one in nodes}
            nodes.extend(found for name, found in self._read.items() if name not in known)
        read = {name: found.node.metadata for name, found in self._read.items()}
        response.metadata = {**read, **(response.metadata or {}), **({OWN: self._said} if self._said else {})}
