"""The three stages of the published recipe, scaled to a backbone's window and width."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mplus.backbone.backbone import Backbone
from mplus.config import MemoryConfig

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

PUBLISHED_WIDTH = 4096
"""Hidden size that the published learning rates belong to."""
PREFIX_SHARE = 2
"""Short-term and recalled tokens together take at most one part in this many of the window."""


class Stage(BaseModel):
    """One stage of the published recipe; frozen, and what a run's settings hold.

    Every share is of the steps, in the order in which it is drawn: plain, else replay, else direct, else full.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    steps: Positive
    batch: Positive = 1
    """Samples per step and process. They follow one another through the same memory."""

    tokens_per_write: Positive
    """Memory tokens made per chunk and layer [K]."""
    blocks: Positive
    """Short-term and recalled tokens together, in units of K [B]."""
    long_term_blocks: Annotated[int, Field(ge=0)]
    """Recalled tokens, in units of K; 0 trains short-term memory alone [B_l]."""
    consolidate_every: Positive = 60
    """Writes between consolidations [F]."""

    plain: Share = 0.075
    """Share of steps: plain language modelling of contexts and target, with the memory as it is."""
    replay: Share = 0.2
    """Share of the other steps: an earlier sample's target again; nothing is written."""
    direct: Share = 0.15
    """Share of the steps left: one chunk, written with gradient and read back. Only these train writing."""
    repeat: Share = 0.1
    """Share of the samples whose target is the contexts themselves."""
    long_documents: Share = 0.0
    """Share of the samples from a document of more than ``short_tokens`` tokens."""

    minimum_chunk_tokens: Positive = 16
    chunk_tokens: Positive = 512
    target_tokens: Positive = 2048
    """Longest target."""
    short_tokens: Positive = 4096
    """Most tokens of a short document, contexts and target together."""
    long_tokens: Positive = 65536
    """Most tokens of a long one."""
    replayed: Positive = 64
    """Earlier samples that replay chooses from."""

    has_retriever: bool = False
    """Train the retriever too."""
    learning_rate: Annotated[float, Field(gt=0)]
    final_learning_rate: Annotated[float, Field(gt=0)]
    """The rate falls to this in a straight line."""
    retriever_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of all gradients together."""

    @property
    def memory(self) -> MemoryConfig:
        """The published layout in these sizes, with the defects of the published code mended."""
        return MemoryConfig.published(
            tokens_per_write=self.tokens_per_write,
            num_blocks=self.blocks,
            num_long_term_blocks=self.long_term_blocks,
            consolidate_every=self.consolidate_every,
        ).model_copy(
            update={
                "chunk_tokens": self.chunk_tokens,
                "minimum_chunk_tokens": self.minimum_chunk_tokens,
                "long_term_capacity": 2**40 if self.long_term_blocks else 0,
                "recall_frequency_gain": 1.0,
                "ages_stop_in_short_term": False,
                "repeat_short_recall": False,
            }
        )

    @property
    def memory_in_training(self) -> MemoryConfig:
        """The same memory, with the states of its tokens kept: reading them is what is trained."""
        return self.memory.model_copy(update={"keep_states": True})


def published_stages(backbone: Backbone, **changes: Any) -> dict[str, Stage]:
    """The published stages for a backbone, by name.

    The published sizes are for a window of 128k and a hidden size of 4,096: K is 256 there, and smaller where
    B blocks of K tokens would take more than half of the window. Learning rates grow as the model gets
    narrower, in proportion.

    Args:
        backbone: For its window and width.
        changes: Settings that all stages shall have instead.

    Raises:
        ValueError: A setting out of range.
    """
    blocks = 50
    tokens_per_write = max(min(256, backbone.window // PREFIX_SHARE // blocks), 1)
    room = max(backbone.window // PREFIX_SHARE - 1, 2)
    width = PUBLISHED_WIDTH / backbone.hidden_size
    shared: dict[str, Any] = {
        "steps": 1000,
        "tokens_per_write": tokens_per_write,
        "chunk_tokens": max(min(512, room // 2), 16),
        "target_tokens": min(2048, room),
        "blocks": blocks,
        "long_term_blocks": 0,
        "learning_rate": 4.6e-5 * width,
        "final_learning_rate": 4.6e-6 * width,
        "retriever_learning_rate": 1e-4 * width,
    } | changes
    shared.setdefault("short_tokens", 2 * shared["target_tokens"])
    special: dict[str, dict[str, Any]] = {
        "published-1": {},
        "published-2": {"long_documents": 0.5, "has_retriever": True},
        "published-3": {"long_documents": 0.1, "has_retriever": True, "long_term_blocks": 10},
    }
    return {name: Stage.model_validate({"name": name} | shared | own | changes) for name, own in special.items()}
