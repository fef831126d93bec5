"""How much of the model's window a memory leaves to prompt and answer."""

from mplus.backbone.backbone import Backbone
from mplus.config import MemoryConfig
from mplus.errors import PromptTooLongError
from mplus.memory.state import MemoryState


def room_beside(state: MemoryState, config: MemoryConfig, backbone: Backbone) -> int:
    """Number of positions left for prompt and answer after the longest prefix that this memory can have."""
    return backbone.room(config.prefix_of(_most_read(state, config)))


def check_fits(num_tokens: int, state: MemoryState, config: MemoryConfig, backbone: Backbone) -> None:
    """Check that a prompt leaves room for an answer.

    Raises:
        PromptTooLongError: It does not.
    """
    room = room_beside(state, config, backbone)
    if num_tokens >= room:
        raise PromptTooLongError(
            f"The prompt has {num_tokens:,} tokens, but {room - 1:,} fit beside this memory in the model's window "
            f"of {backbone.window:,}. Write the long part into memory, or shorten the prompt."
        )


def _most_read(state: MemoryState, config: MemoryConfig) -> int:
    """Most memory tokens that one read of this memory can have in its prefix, without repeated ones."""
    return max(
        len(track.short_term) + min(len(track.pending) + len(track.long_term), config.recalled_tokens)
        for track in state.tracks
    )
