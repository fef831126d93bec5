"""``MemoryConfig``: sizes of a memory, its layout, recall, forgetting and storage."""

from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

LayoutName = Literal["chunk", "token"]
Encoding = Literal["states", "adapter"]
Recall = Literal[
    "late",
    "published",
    "attention",
    "embedding",
    "embedding+late",
    "embedding+attention",
    "embedding+published",
]
TokenRecall = Literal["late", "published", "attention"]
"""Ways of scoring that compare memory tokens."""
EMBEDDING = "embedding"
Read = Literal["auto", "latent", "text"]
Tier = Literal["auto", "cpu", "cuda", "disk"]
StorageDtype = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
Keep = Literal["latents", "ids", "auto"]
ChunkContext = Literal["auto", "previous", "none"]

# The upper limits are far above anything of use: settings may come from a file that somebody else made.
PositiveInt = Annotated[int, Field(ge=1, le=2**50, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**50, strict=True)]
ChunkTokens = Annotated[int, Field(ge=1, le=2**20, strict=True)]
ReadTokens = Annotated[int, Field(ge=0, le=2**24, strict=True)]
Times = Annotated[int, Field(ge=0, le=64, strict=True)]
FiniteFloat = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class MemoryConfig(BaseModel):
    """Sizes and rules of one memory; frozen, checked once when built, saved with the memory.

    All sizes are in memory tokens per layer. Symbols in brackets are those of the paper. A model brings its own
    settings (``mplus info MODEL`` prints them): ``smol_135m()`` those of the default model, ``published()`` those of
    the released 8B, ``for_window()`` those of a model whose checkpoint has none.

    Raises:
        ValueError: A size is not a positive whole number, a number is not finite, or two settings
            contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    chunk_tokens: ChunkTokens = 64
    """Text tokens written in one pass, at most. Texts are cut at sentence ends where possible."""
    minimum_chunk_tokens: ChunkTokens = 16
    """A tail of fewer text tokens waits for more text; reads treat it as if it had been written."""
    tokens_per_write: ChunkTokens = 64
    """Memory tokens made per chunk and layer [K]; also how many earlier tokens a write attends to."""
    encoding: Encoding = "states"
    """What a memory token is: each text token's own state, or K vectors made by a write adapter."""
    chunk_context: ChunkContext = "auto"
    """What a chunk is encoded with: "previous", the chunk that it continues; "none", nothing, in a pass of its own, so
    that its memory tokens depend on its text alone. "auto": "none" where ``long_term_keep`` needs it, else "previous".
    """
    short_term_tokens: ReadTokens = 512
    """Capacity of short-term memory [N]; every read attends to all of it."""
    recalled_tokens: ReadTokens = 512
    """Most long-term tokens that one read recalls [R]."""
    long_term_capacity: NonNegativeInt = 1_048_576
    """Most long-term tokens kept per layer. 0: no long-term memory (MemoryLLM)."""
    consolidate_every: PositiveInt = 16
    """Evicted tokens move to long-term memory each time this many times K memory tokens were written [F]."""
    initial_recall_frequency: FiniteFloat = 10.0
    """Recall frequency of a token that enters long-term memory [f0]."""
    recall_frequency_decay: FiniteFloat = 0.0
    """Subtracted from every recall frequency at a consolidation [delta]; a token at 0 is forgotten."""
    recall_frequency_gain: FiniteFloat = 1.0
    """Added to the recall frequency of a token when it is recalled (0 in the published model)."""
    age_limit_seconds: PositiveFloat | None = None
    """Text that was given more seconds ago is forgotten, even if nothing was written since. None: never."""
    age_limit_tokens: PositiveInt | None = None
    """A chunk is forgotten once more memory tokens than this were written after it. None: never."""
    ledger: bool = True
    """Keep all written texts as token ids (4 bytes each), so that ``forget(rebuild=…)`` can write them again."""
    layout: LayoutName = "chunk"
    """Evict and recall whole chunks, for all layers at once; or single tokens, layer by layer (``mplus.layouts``)."""
    recall: Recall = "late"
    """How long-term tokens are scored: late interaction, co-trained retriever, or attention; "embedding": by the
    vectors of an embedder that you bring; "embedding+late": by both. Embeddings are for the chunk layout only."""
    embedding_weight: FiniteFloat = 0.5
    """Weight of your embedder beside another scorer: spreads of the other's relevance that a chunk gains for each
    spread of its cosine. Only if ``recall`` names both."""
    read: Read = "auto"
    """How an answer sees memory: "latent", as memory tokens in front of the prompt; "text", as recalled text in the
    prompt, decoded from the ledger. "auto": what the model's read adapter was trained to read; without one, what a
    short check of the model finds better (``MPlus.reads``). Text needs the chunk layout and a ledger."""
    recalled_neighbours: Times = 0
    """Number of chunks of the same text on either side of the most relevant one that are recalled with it, before
    others: the answer is often beside the words that the question names. Chunk layout only, and latents: read as text,
    a chunk is widened to its message or some sentences."""
    relevance_cutoff: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Chunks are recalled only if they have at least this share of the most relevant one's relevance (above an average
    chunk's), since less relevant ones distract a small model. Neighbours are always recalled. 0: as many as fit.
    Chunk layout only."""
    best_sentence_times: Times = 0
    """How often the sentence that answers best is read next to the prompt. 1: the text around it is reordered so that
    it ends with the sentence; each further time repeats the sentence. 0: texts keep their order. Chunk layout only,
    and latents: read as text, texts keep their order."""
    recall_layer: NonNegativeInt | None = None
    """Layer whose states are scored in the chunk layout. None: the layer that the retriever was made for."""
    lexical_weight: FiniteFloat = 4.0
    """Weight of shared words beside late interaction: added relevance, in standard deviations, of a chunk that contains
    all words of the question. 0: late interaction alone."""
    exact_recall_tokens: NonNegativeInt = 262_144
    """Up to this many long-term tokens late interaction scores every chunk; beyond, only the chunks that a coarse index
    finds nearest (recall@R of 0.95 and more)."""
    ages_stop_in_short_term: bool = False
    """Published defect: ages do not grow in short-term memory, so long-term memory is not in the order of writing."""
    repeat_short_recall: bool = False
    """Published fallback: with fewer than R long-term tokens, repeat them and ignore pending."""
    keep_states: bool = False
    """Keep hidden states of every memory token for export; more than doubles the memory's size."""
    long_term_device: Tier = "auto"
    """Where long-term keys and values are kept: "cuda" on their layers' devices, "cpu" in host memory, "disk"; "auto"
    is host memory, and disk if that is too small. Segments that exceed a tier's bytes go to the next slower one."""
    long_term_device_bytes: NonNegativeInt | None = None
    """Most bytes of one memory on its layers' devices with long_term_device="cuda". None: no limit."""
    long_term_host_bytes: NonNegativeInt | None = None
    """Most bytes of one memory's long-term tokens in host memory. None: a quarter of the machine's for "auto",
    else no limit."""
    long_term_dtype: StorageDtype = "auto"
    """Dtype of long-term keys and values. "auto": int8 in the chunk layout, the model's dtype in the token layout.
    "int4" takes half the bytes of "int8" and costs some accuracy; retrieval keys stay in int8 with it."""

    long_term_keep: Keep = "latents"
    """What is kept of a chunk: "latents", keys and values of all layers; "ids", token ids and retrieval keys, and a
    read makes keys and values when it needs them, bit for bit the same; "auto", ids too, but a write makes keys and
    values at once while there is room for them. "ids" and "auto" need the chunk layout."""
    long_term_latent_bytes: NonNegativeInt = 2**28
    """Most bytes of keys and values that a memory of token ids holds for later reads; the least recently used are
    dropped first. Short-term memory, which is read whole, comes on top. They are not saved."""

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
        if self.read == "text" and not self.has_texts:
            raise ValueError(
                f'read="text" needs layout="chunk" and ledger=True, to know the text of what is recalled; got layout='
                f'"{self.layout}" and ledger={self.ledger}. Change these, or use read="latent".'
            )
        for defect in ("ages_stop_in_short_term", "repeat_short_recall"):
            if getattr(self, defect) and self.keeps_chunks:
                raise ValueError(f'{defect}=True is a defect of the published layout; use layout="token" with it.')
        if self.has_vectors and not self.keeps_chunks:
            raise ValueError(
                f"recall={self.recall!r} compares chunks of text, but layout={self.layout!r} keeps single tokens. Use "
                f'layout="chunk", or recall={self.token_recall!r}.'
            )
        self._check_keep()
        if self.encoding == "adapter" and self.short_term_tokens < self.tokens_per_write:
            raise ValueError(
                f"short_term_tokens={self.short_term_tokens}: a write adapter reads the last "
                f"tokens_per_write={self.tokens_per_write} short-term tokens, so that many must be kept."
            )
        return self

    def _check_keep(self) -> None:
        if self.keeps_ids and not self.keeps_chunks:
            raise ValueError(
                f'long_term_keep="{self.long_term_keep}" makes whole chunks again from their token ids, but layout='
                f'"{self.layout}" keeps single tokens. Use layout="chunk", or long_term_keep="latents".'
            )
        if self.keeps_ids and self.chunk_context == "previous":
            raise ValueError(
                f'long_term_keep="{self.long_term_keep}" makes a chunk again from its own token ids, but chunk_context='
                '"previous" encodes it with the chunk before it. Use chunk_context="none", or long_term_keep="latents".'
            )
        if self.keeps_ids and self.keep_states:
            raise ValueError(
                f'keep_states=True keeps hidden states, which long_term_keep="{self.long_term_keep}" does not. Use '
                'long_term_keep="latents" with it.'
            )
        if self.encoding == "adapter" and self.chunk_context == "none":
            raise ValueError(
                'chunk_context="none": a write adapter always reads short-term memory. Use chunk_context="previous".'
            )

    @property
    def keeps_ids(self) -> bool:
        """Whether a chunk is kept as token ids and retrieval keys."""
        return self.long_term_keep != "latents"

    @property
    def encodes_apart(self) -> bool:
        """Whether a chunk is encoded by itself, in a pass of its own."""
        return self.keeps_ids or self.chunk_context == "none"

    @property
    def keeps_chunks(self) -> bool:
        """Whether each text token becomes a memory token and whole chunks are kept."""
        return self.layout == "chunk"

    @property
    def has_vectors(self) -> bool:
        """Whether every chunk has a vector of the user's embedder."""
        return self.recall.startswith(EMBEDDING)

    @property
    def token_recall(self) -> TokenRecall:
        """The scorer that retrieval keys of memory tokens are made for."""
        name = self.recall.removeprefix(EMBEDDING).removeprefix("+") or "late"
        return cast("TokenRecall", name)

    @property
    def has_texts(self) -> bool:
        """Whether the text of every chunk can be decoded from the ledger."""
        return self.keeps_chunks and self.ledger

    @property
    def has_age_limit(self) -> bool:
        """Whether an age limit is set."""
        return self.age_limit_seconds is not None or self.age_limit_tokens is not None

    @property
    def resolved_long_term_dtype(self) -> StorageDtype:
        """The storage dtype that "auto" stands for; "auto" again for the model's own dtype."""
        if self.long_term_dtype == "auto" and self.keeps_chunks and not self.keep_states:
            return "int8"
        return self.long_term_dtype

    @property
    def repeated_tokens(self) -> int:
        """Most tokens that a read repeats."""
        return max(self.best_sentence_times - 1, 0) * self.chunk_tokens if self.keeps_chunks else 0

    @property
    def prefix_tokens(self) -> int:
        """Longest prefix of a read: bos, recalled, short-term and repeated tokens [P]."""
        return self.prefix_of(self.recalled_tokens + self.short_term_tokens)

    def prefix_of(self, num_tokens: int) -> int:
        """Longest prefix of a read of ``num_tokens`` memory tokens: bos, those tokens, and repeated ones."""
        return 1 + num_tokens + self.repeated_tokens

    @classmethod
    def smol_135m(cls) -> "MemoryConfig":
        """The layout of the default model, whose ``mplus.json`` names it with ``"memory": "smol-135m"``.

        A model of 135M parameters is easily distracted. So it reads fewer tokens than the defaults allow, and the
        sentence that answers best is read twice next to the question.
        """
        return cls(
            short_term_tokens=128,
            recalled_tokens=256,
            recalled_neighbours=2,
            relevance_cutoff=0.7,
            best_sentence_times=2,
        )

    @classmethod
    def for_text(cls) -> "MemoryConfig":
        """The layout of ``qwen-0.5b`` and ``qwen-1.5b``: memory is read as text, and kept as token ids."""
        return cls(short_term_tokens=512, recalled_tokens=512, read="text", long_term_keep="ids")

    @classmethod
    def for_window(cls, window: int) -> "MemoryConfig":
        """The layout of a model whose checkpoint names none: memory takes at most half of its window.

        Args:
            window: Number of positions that the model was trained for.
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


PRESETS = {
    "smol-135m": MemoryConfig.smol_135m,
    "qwen-0.5b": MemoryConfig.for_text,
    "qwen-1.5b": MemoryConfig.for_text,
}
"""Layouts that a checkpoint may give by name."""

SURVIVAL_FREQUENCY = 0.01
"""A long-term token whose recall frequency is not above this is forgotten (spec section 5)."""
