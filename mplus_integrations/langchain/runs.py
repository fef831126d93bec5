"""The run of a graph in which an agent's middleware is called: which turns in memory are its own."""

from typing import NamedTuple

from langgraph.config import get_config

from mplus import Source
from mplus_integrations.conversations import GRAPH_THREAD as THREAD
from mplus_integrations.conversations import PART
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

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the turns that are written in it."""
        return {**({} if self.thread is None else {THREAD: self.thread}), **({PART: self.graph} if self.graph else {})}

    def has_written(self, source: Source) -> bool:
        """Whether it, or an earlier run of the same graph on the same thread, has written a turn."""
        about = source.metadata
        return self.thread is not None and about.get(THREAD) == self.thread and about.get(PART, "") == self.graph


def current_run() -> Run:
    """The run of the graph that calls."""
    try:
        config = get_config()
    except RuntimeError:  # called outside a graph
        return Run(None, "", is_kept=False)
    thread = config.get("configurable", {}).get("thread_id")
    return Run(None if thread is None else str(thread), graph_of(config), is_kept(config))
