"""The run of a graph in which an agent's middleware is called: which turns in memory are its own."""

from typing import NamedTuple

from langgraph.config import get_config

from mplus import Source
from mplus_integrations.conversations import GRAPH_MESSAGE, PART
from mplus_integrations.conversations import GRAPH_THREAD as THREAD
from mplus_integrations.langchain.configs import graph_of, is_kept


class Run(NamedTuple):
    """The run of a graph.

    Attributes:
        thread: The id of its thread; None without one.
        graph: Its place within other graphs; empty for one that is in none.
        is_kept: Whether a checkpointer keeps its messages from one run to the next.
    """

    thread: str | None
    graph: str
    is_kept: bool

    def metadata(self, message: str) -> dict[str, str]:
        """Metadata of a turn that is written in it, by the id of its message."""
        thread = {} if self.thread is None else {THREAD: self.thread}
        return {**thread, **({PART: self.graph} if self.graph else {}), GRAPH_MESSAGE: message}

    def knows(self, source: Source) -> bool:
        """Whether a source is a turn whose message has its id from where this run's messages have theirs.

        That is the thread, or the graph's own state on it. Without a thread it is whoever calls, with any graph.
        """
        about = source.metadata
        if self.thread is None:
            return GRAPH_MESSAGE in about and THREAD not in about
        return about.get(THREAD) == self.thread and (not self.is_kept or about.get(PART, "") == self.graph)

    def has_written(self, source: Source) -> bool:
        """Whether it, or an earlier run of the same graph on the same thread, has written a turn."""
        return self.knows(source) and source.metadata.get(PART, "") == self.graph


def current_run() -> Run:
    """The run of the graph that calls."""
    try:
        config = get_config()
    except RuntimeError:  # called outside a graph
        return Run(None, "", is_kept=False)
    thread = config.get("configurable", {}).get("thread_id")
    return Run(None if thread is None else str(thread), graph_of(config), is_kept(config))
