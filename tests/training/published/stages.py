"""A stage of the published recipe small enough for a test."""

from mplus.testing import tiny_model
from mplus.training.chunk.plain_text import Document, Episodes
from mplus.training.published.stages import Stage, published_stages

DOCUMENTS = [
    Document(
        str(i), " ".join(f"In place {i} box {j * 7 % 13} is {'red' if (i + j) % 3 else 'blue'}." for j in range(5))
    )
    for i in range(8)
]


def stage(number: int = 3, **changes) -> Stage:
    settings = {"tokens_per_write": 8, "blocks": 12, "chunk_tokens": 32, "target_tokens": 48, "consolidate_every": 2}
    made = published_stages(tiny_model().weights.backbone, **settings)[f"published-{number}"]
    return made.model_copy(update={"short_tokens": 128} | ({"long_term_blocks": 4} if number == 3 else {}) | changes)


def episodes(tokenizer) -> Episodes:
    return Episodes(DOCUMENTS, tokenizer, short_tokens=128, chunk_tokens=(16, 32), target_tokens=48)
