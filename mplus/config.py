"""How a memory is laid out: sizes, what is evicted, what is recalled, where it is kept."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LayoutName = Literal["chunk", "token"]
Encoding = Literal["states", "adapter"]
Recall = Literal["late", "published", "attention"]
Tier = Literal["auto", "cpu", "cuda", "disk"]
StorageDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
FiniteFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MemoryConfig(BaseModel):
    """Sizes and rules of one memory; frozen, checked once when built, saved with the memory.

    All sizes are in memory tokens per layer. Symbols in brackets are those of the paper. A model brings its own
    settings (``mplus info MODEL`` prints them): ``smol_135m()`` those of the default model, ``published()`` those of
    the released 8B, ``for_window()`` those of a model whose checkpoint says nothing.

    Raises:
        ValueError: A size is not a positive whole number, a number is not finite, or two settings
            contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    chunk_tokens: PositiveInt = 64
    """Text tokens written in one pass, at most. Texts are cut at sentence ends where possible."""
    minimum_chunk_tokens: PositiveInt = 16
    """A tail shorter than this waits until more arrives; reads see it as if it had been written."""
    tokens_per_write: PositiveInt = 64
    """Memory tokens made per chunk and layer [K]; also how far back a write sees."""
    encoding: Encoding = "states"
    """What a memory token is: each text token's own state, or K vectors made by a write adapter."""
    short_term_tokens: NonNegativeInt = 512
    """Capacity of short-term memory, which every read sees whole [N]."""
    recalled_tokens: NonNegativeInt = 512
    """Most long-term tokens that one read recalls [R]."""
    long_term_capacity: NonNegativeInt = 1_048_576
    """Most long-term tokens kept per layer. 0 keeps no long-term memory (MemoryLLM)."""
    consolidate_every: PositiveInt = 16
    """Writes' worth of evicted tokens that wait before they move to long-term memory [F]."""
    initial_recall_frequency: FiniteFloat = 10.0
    """Recall frequency of a token that enters long-term memory [f0]."""
    recall_frequency_decay: FiniteFloat = 0.0
    """What every recall frequency loses at a consolidation; a token at 0 is forgotten [delta]."""
    recall_frequency_gain: FiniteFloat = 1.0
    """What a recalled token's frequency gains (0 in the published model, where it only decays)."""
    age_limit_seconds: PositiveFloat | None = None
    """Text handed in longer ago is forgotten, whether or not anything is written since. None: never."""
    age_limit_tokens: PositiveInt | None = None
    """Chunks after which more memory tokens than this were written are forgotten. None: never."""
    ledger: bool = True
    """Keep what was written as token ids (4 bytes each), so that ``forget(rebuild=…)`` can write it again."""
    layout: LayoutName = "chunk"
    """Evict and recall whole chunks, for all layers at once; or single tokens, layer by layer (``mplus.layouts``)."""
    recall: Recall = "late"
    """How long-term tokens are scored: late interaction, co-trained retriever, or attention."""
    recalled_neighbours: NonNegativeInt = 0
    """So many chunks of the same text on either side of the most relevant one are recalled with it, before others: what
    a question names often stands beside what it asks for. Only in the chunk layout."""
    relevance_cutoff: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Chunks are recalled only if they have this share of the most relevant one's relevance (above an average chunk's):
    what is less relevant distracts a small reader. Neighbours come along all the same. 0: as many as fit. Only in the
    chunk layout."""
    best_sentence_times: NonNegativeInt = 0
    """How often the sentence of the most relevant chunks that says most of what is asked stands next to the prompt.
    Once: the text around it is turned so that it ends with it; each further time it is said again. 0: chunks stay as
    they are. Only in the chunk layout."""
    recall_layer: NonNegativeInt | None = None
    """Layer whose states are scored in the chunk layout. None: what the retriever was made for."""
    lexical_weight: FiniteFloat = 4.0
    """How much it counts beside late interaction that a chunk says the question's own words: in standard deviations of
    its relevance for a chunk that says all of them. 0: late interaction alone."""
    exact_recall_tokens: NonNegativeInt = 262_144
    """Up to this many long-term tokens late interaction scores every chunk; beyond, those that a coarse index
    finds nearest (recall@R of 0.95 and more)."""
    ages_stop_in_short_term: bool = False
    """Published defect: short-term ages never grow, so long-term order is not temporal order."""
    repeat_short_recall: bool = False
    """Published fallback: with fewer than R long-term tokens, repeat them and ignore pending."""
    keep_states: bool = False
    """Keep hidden states of every memory token, to export it; more than doubles its size."""
    long_term_device: Tier = "auto"
    """Where long-term keys and values wait: "cuda" beside their layers, "cpu" in host memory, "disk"; "auto" is
    host memory, and disk where that is too small. Whatever exceeds a tier's bytes goes one tier down."""
    long_term_device_bytes: NonNegativeInt | None = None
    """Most bytes of one memory beside its layers where long_term_device="cuda". None: no limit."""
    long_term_host_bytes: NonNegativeInt | None = None
    """Most bytes of one memory's long-term tokens in host memory. None: a quarter of the machine's for "auto",
    else no limit."""
    long_term_dtype: StorageDtype = "auto"
    """How they are stored. "auto": int8 in the chunk layout, the model's dtype in the token layout. "int4" takes
    half the bytes of "int8" and costs some accuracy; retrieval keys stay in int8 with it."""

    @model_validator(mode="after")
    def _check(self) -> "MemoryConfig":
        if self.minimum_chunk_tokens > self.chunk_tokens:
            raise ValueError(
                f"minimum_chunk_tokens={self.minimum_chunk_tokens} is above chunk_tokens="
                f"{self.chunk_tokens}; no chunk could ever be written. Lower it."
            )
        if 0 < self.short_term_tokens < self.tokens_per_write:
            raise ValueError(
                f"short_term_tokens={self.short_term_tokens} cannot hold one write of tokens_per_write="
                f"{self.tokens_per_write}. Use at least {self.tokens_per_write}, or 0."
            )
        if self.encoding == "adapter" and self.keeps_chunks:
            raise ValueError(
                'encoding="adapter" makes compressed tokens that belong to no text position; '
                'use layout="token" with it.'
            )
        for defect in ("ages_stop_in_short_term", "repeat_short_recall"):
            if getattr(self, defect) and self.keeps_chunks:
                raise ValueError(f'{defect}=True is a defect of the published layout; use layout="token" with it.')
        if self.encoding == "adapter" and self.short_term_tokens < self.tokens_per_write:
            raise ValueError(
                f"short_term_tokens={self.short_term_tokens}: a write adapter reads the last "
                f"tokens_per_write={self.tokens_per_write} short-term tokens, so that many must be kept."
            )
        return self

    @property
    def keeps_chunks(self) -> bool:
        """Whether whole chunks are kept, each text token by itself."""
        return self.layout == "chunk"

    @property
    def has_age_limit(self) -> bool:
        """Whether anything goes by age."""
        return self.age_limit_seconds is not None or self.age_limit_tokens is not None

    @property
    def resolved_long_term_dtype(self) -> StorageDtype:
        """The storage dtype that "auto" stands for ("auto" again where the model's own dtype is meant)."""
        if self.long_term_dtype == "auto" and self.keeps_chunks and not self.keep_states:
            return "int8"
        return self.long_term_dtype

    @property
    def repeated_tokens(self) -> int:
        """Most tokens that a read says again."""
        return max(self.best_sentence_times - 1, 0) * self.chunk_tokens if self.keeps_chunks else 0

    @property
    def prefix_tokens(self) -> int:
        """Longest prefix of a read: bos, recalled and short-term tokens, and what is said again [P]."""
        return 1 + self.recalled_tokens + self.short_term_tokens + self.repeated_tokens

    @classmethod
    def smol_135m(cls) -> "MemoryConfig":
        """What the default model uses. Its ``mplus.json`` says ``"memory": "smol-135m"``, which is this method.

        A model of 135M parameters is distracted easily: it reads less than the defaults allow, and the sentence that
        says most of what is asked stands next to the question, twice.
        """
        return cls(
            short_term_tokens=128,
            recalled_tokens=256,
            recalled_neighbours=2,
            relevance_cutoff=0.7,
            best_sentence_times=2,
        )

    @classmethod
    def for_window(cls, window: int) -> "MemoryConfig":
        """What a model uses whose checkpoint says nothing: memory takes at most half of its window.

        Args:
            window: Positions that the model was trained for.
        """
        tokens = max(min(512, window // 4), 64)
        return cls(short_term_tokens=tokens, recalled_tokens=tokens)

    @classmethod
    def published(
        cls,
        *,
        tokens_per_write: int = 256,
        num_blocks: int = 50,
        num_long_term_blocks: int = 10,
        consolidate_every: int = 60,
        initial_recall_frequency: float = 10.0,
        recall_frequency_decay: float = 1.0,
    ) -> "MemoryConfig":
        """The layout of the published M+ model, exactly, its defects included (spec section 8).

        The defaults are the sizes of the 8B model: 10,240 short-term and 2,560 recalled tokens.
        """
        return cls(
            chunk_tokens=512,
            minimum_chunk_tokens=16,
            tokens_per_write=tokens_per_write,
            encoding="adapter",
            short_term_tokens=(num_blocks - num_long_term_blocks) * tokens_per_write,
            recalled_tokens=num_long_term_blocks * tokens_per_write,
            long_term_capacity=2**40,
            consolidate_every=consolidate_every,
            initial_recall_frequency=initial_recall_frequency,
            recall_frequency_decay=recall_frequency_decay,
            recall_frequency_gain=0.0,
            layout="token",
            recall="published",
            ages_stop_in_short_term=True,
            repeat_short_recall=True,
        )


PRESETS = {"smol-135m": MemoryConfig.smol_135m}
"""Settings that a checkpoint may name instead of listing them."""

SURVIVAL_FREQUENCY = 0.01
"""A long-term token whose recall frequency is not above this is forgotten (spec section 5)."""


def finite(name: str, value: float) -> float:
    """``value`` itself, or a ``ValueError`` that names it where it is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: expected a finite number.")
    return value
