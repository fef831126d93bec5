"""The memories of a read: one, or several of one layout, each made by the model that reads it."""

from collections.abc import Iterable, Sequence

from mplus.errors import MemoryMismatchError
from mplus.given import refused
from mplus.memory.memory import Memory, check_memory
from mplus.recall.embedder import Embedder
from mplus.weights import Weights

MemoryLike = Memory | Sequence[Memory]
"""One memory, or several that are read together."""


def memories_of(memory: MemoryLike) -> tuple[Memory, ...]:
    """The memories of a read.

    Raises:
        ValueError: There is none, something else, or one is given twice.
    """
    if isinstance(memory, Memory):
        return (memory,)
    found = tuple(memory) if isinstance(memory, Iterable) else ()  # pyright: ignore[reportUnnecessaryIsInstance]
    is_each = all(isinstance(one, Memory) for one in found)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not found or not is_each or len(set(map(id, found))) < len(found):
        raise refused("memory", memory, "a Memory, or several to read together, each once")
    return found


def check_alike(memories: Sequence[Memory]) -> None:
    """Check that memories can be read together.

    Raises:
        MemoryMismatchError: Their layouts differ.
    """
    first = memories[0].config
    for name in ("layout", "encoding", "recall", "recall_layer"):
        for other in memories[1:]:
            if getattr(other.config, name) != getattr(first, name):
                raise MemoryMismatchError(
                    f"Memories with {name}={getattr(first, name)!r} and {getattr(other.config, name)!r} cannot be read "
                    "together. Make both with one MemoryConfig."
                )


def check_belongs(memory: Memory, weights: Weights, name: str) -> None:
    """Check that a memory belongs to a model, and to its embedder.

    Args:
        memory: The memory.
        weights: The model.
        name: Its name, for the message.

    Raises:
        MemoryMismatchError: The memory belongs to another model, or its chunks have vectors of another embedder.
    """
    check_weights(memory, weights, name)
    if memory.config.has_vectors:
        check_embedder(memory, weights.embedder)


def check_weights(memory: Memory, weights: Weights, name: str) -> None:
    """Check that a memory was made by these weights; takes what ``check_belongs`` does.

    Raises:
        MemoryMismatchError: It was made by others.
    """
    check_memory(memory)
    own = weights.fingerprints[memory.config.recall]
    if memory.model_fingerprint != own:
        raise MemoryMismatchError(
            f"This memory was made by a model with fingerprint {memory.model_fingerprint}, not by "
            f"{name or 'this one'} ({own}). Latent memory cannot move between "
            "weights: write its texts again with new_memory()."
        )


def check_embedder(memory: Memory, embedder: Embedder | None) -> None:
    """Check that the chunks of a memory have vectors of this embedder.

    Raises:
        MemoryMismatchError: They have those of another, or there is no embedder.
    """
    recall, written_with = memory.config.recall, {track.vectors.embedder for track in memory.state.tracks} - {""}
    if embedder is not None and written_with <= {embedder.name}:
        return
    found = f"the model has {embedder.name!r}" if embedder else "the model has none"
    expected = f"vectors of the embedder {min(written_with)!r}" if written_with else "an embedder"
    raise MemoryMismatchError(
        f"This memory has recall={recall!r} and needs {expected}, but {found}. Pass it to from_pretrained(embedder=…) "
        f"or with_embedder(…); or recall without it: model.with_recall(memory, {memory.config.token_recall!r})."
    )
