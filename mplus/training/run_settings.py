"""Settings of a training run; frozen, checked once, kept in the run's folder."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CHUNK_STAGES = ("projection", "reader", "tune", "gate", "scorer", "decline")
PUBLISHED_STAGES = ("published-1", "published-2", "published-3")
ALIASES = {"published": PUBLISHED_STAGES}
"""Names that stand for several stages."""
DEFAULT_STAGES = ("projection", "reader")

Positive = Annotated[int, Field(ge=1)]


class RunSettings(BaseModel):
    """Everything that decides what a run trains.

    Raises:
        ValueError: An unknown stage, stages that exclude each other, nothing to train on, or a number out of
            range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = "smol-135m"
    """Backbone: built-in name, local folder or hub repository."""
    texts: tuple[Path, ...] = ()
    """Text file or folder of them (.txt .md .rst .jsonl, or .gz)."""
    squad: Path | None = None
    """Passages with questions, as SQuAD JSON."""
    dialogues: Path | None = None
    """Conversations, one JSON a line."""
    broad: tuple[Path, ...] = ()
    """Passages with questions of other origins, JSON lines with text, question, answers and kind; files or folders."""
    talk: Annotated[int, Field(ge=0)] = 0
    """How many times values are drawn for each item of the package's own conversations, notes and documents, which
    are then learnt from too; with the default model's mixture."""
    teacher: Path | None = None
    """Folder of a sentence embedder: the projection also learns how it ranks passages."""
    stages: tuple[str, ...] = DEFAULT_STAGES
    """What is trained, in order: projection, reader, tune (go on with the read adapter there is), gate, scorer; or
    decline, alone: when to say "I don't know.", by forward passes alone; or
    published-1, published-2, published-3 (published: all three)."""
    steps: dict[str, Positive] = Field(default_factory=dict)
    """Steps of a stage, as in reader=4000, where not the stage's own."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of adapters; None takes the stage's preset."""
    batch: Positive | None = None
    """Samples per step and process; None takes the stage's preset."""
    rank: Positive = 16
    """Rank of the adapters."""
    tune_rank: Positive | None = None
    """Rank to which tune widens the adapter that it goes on with; None: it keeps its rank."""
    read: Literal["latent", "text"] | None = None
    """What reader and tune learn to read: latents, or text in the prompt, as recall brings it; None: as the model's
    memory settings say, latents where these leave it open."""
    write_from: Annotated[int, Field(ge=0)] | None = None
    """First decoder layer that reader and tune make write through the adapter, too, the recall layer or a later one;
    None: as the model does, which is none unless it was trained so."""
    adapters: Positive = 1
    """Read adapters that the reader stage trains, from different seeds; the model gets their mean."""
    broad_texts: Positive = 250
    """Most passages that are taken of each file of broad."""
    conversations: Positive = 300
    """Conversations of the dialogues that are held as states and asked about."""
    people: Positive = 300
    """Generated people, where the mixture is that of the default model."""
    invented: Annotated[int, Field(ge=0)] = 0
    """Passages that the backbone makes up and asks about, for the reader stage; needs SQuAD's to learn asking from."""
    retriever_size: Positive | None = None
    """Numbers of a retrieval key, where not the stage's own."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer whose states recall scores; else what the model says, or a fifth of the way up."""
    tokens_per_write: Positive | None = None
    """Published stages: memory tokens per chunk and layer [K]; else what fits the backbone's window."""
    blocks: Positive | None = None
    """Published stages: short-term and recalled tokens, in units of K; else 50, as published."""
    chunk_tokens: Positive | None = None
    """Published stages: longest chunk; else 512, or what fits the window."""
    target_tokens: Positive | None = None
    """Published stages: longest target; else 2048, or what fits the window."""
    text_tokens: Positive = 150_000
    """Most tokens of plain text held as states at once (not in published stages)."""
    evaluate: str = "talk"
    """What the model is asked before and after, for the table at the end: talk (a few held-out conversations and
    documents of the package's own), the folder of a suite, or none."""
    seed: int = 0
    """The same seed trains the same model."""
    device: str = "auto"
    """Where to compute: "auto" takes what accelerate finds, "cpu" the CPU."""
    dtype: str | None = None
    """Of the frozen backbone; else as from_pretrained has it, but bfloat16 for the stages of the default layout on a
    CPU that computes in it."""
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Mixed precision of the published stages: no or bf16; "auto" takes what accelerate was launched with."""
    save_every: Positive = 100
    """Steps between checkpoints."""
    log_every: Positive = 10
    """Steps between log lines."""

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, stages: tuple[str, ...]) -> tuple[str, ...]:
        named = tuple(name for stage in stages for name in ALIASES.get(stage, (stage,)))
        known = (*CHUNK_STAGES, *PUBLISHED_STAGES)
        if not named:
            raise ValueError(f"stages is empty; expected some of {', '.join(known)}.")
        for name in named:
            if name not in known:
                raise ValueError(f"stage {name!r} is unknown; expected some of {', '.join(known)}, or published.")
        if len(set(named)) < len(named):
            raise ValueError(f"stages={', '.join(named)}: a stage is named twice.")
        kinds = {name in PUBLISHED_STAGES for name in named}
        if len(kinds) > 1:
            raise ValueError(
                f"stages={', '.join(named)}: projection, reader, tune and scorer are for memory of each "
                "token's own state, the published stages for compressed tokens, and each sort leaves a read adapter. "
                "Train one sort."
            )
        return named

    @model_validator(mode="after")
    def _check(self) -> "RunSettings":
        if "decline" in self.stages and len(self.stages) > 1:
            raise ValueError(
                f"stages={', '.join(self.stages)}: decline looks at the model as it is loaded. Train it alone, on the "
                "model that the other stages left: --model OUT/model --stages decline."
            )
        learns_texts = self.stages != ("decline",)
        if learns_texts and not (self.texts or self.talk) and self.squad is None and self.dialogues is None:
            raise ValueError("Nothing to train on. Give text files or folders with --texts, or questions with --squad.")
        if self.invented and (self.squad is None or "reader" not in self.stages):
            raise ValueError(
                f"invented={self.invented}: passages are made up for the reader stage, and asking is learnt from "
                "questions. Give --squad, and name reader among the stages."
            )
        if unknown := sorted(set(self.steps) - set(self.stages)):
            raise ValueError(f"steps for {unknown[0]!r}, which is none of the stages {', '.join(self.stages)}.")
        if "gate" in self.stages and not (self.talk and self.broad):
            raise ValueError(
                "stage 'gate' learns to tell told things from ordinary requests. Give --talk 1 and --broad FOLDER."
            )
        if self.teacher is not None and "projection" not in self.stages:
            raise ValueError(f"teacher={str(self.teacher)!r} teaches the projection. Name projection among the stages.")
        if self.evaluate not in ("talk", "none") and not Path(self.evaluate).is_dir():
            raise ValueError(
                f"evaluate={self.evaluate!r}: expected talk, none, or the folder of a suite, which exists."
            )
        if self.device not in ("auto", "cpu"):
            raise ValueError(
                f"device={self.device!r}: expected 'auto' or 'cpu'. Which GPUs are used is accelerate's choice: "
                "CUDA_VISIBLE_DEVICES=1 mplus train …, or accelerate launch."
            )
        return self

    @property
    def is_published(self) -> bool:
        """Whether the published recipe is asked for."""
        return self.stages[0] in PUBLISHED_STAGES
