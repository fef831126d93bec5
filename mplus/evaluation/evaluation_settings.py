"""What is measured, and how; frozen, checked once."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mplus.evaluation.facts import Split
from mplus.evaluation.tasks import PromptStyle

PERPLEXITY = "perplexity"
LEVELS = (0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 160_000)

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


class EvaluationSettings(BaseModel):
    """Everything that decides what an evaluation asks of what.

    Raises:
        ValueError: An unknown task or style, or a number out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    task: Literal[
        "facts",
        "squad",
        "nq",
        "rows",
        "dialogue",
        "babi",
        "locomo",
        "longmemeval",
        "memoryagentbench",
        "beam",
        "longdoc",
        "talk",
        "common",
        "perplexity",
        "suite",
    ]
    """What is asked: facts, squad, nq, rows, dialogue, babi, locomo, longmemeval, memoryagentbench, beam, longdoc,
    talk, common, perplexity or suite."""
    data: Path | None = None
    """File of the task, folder of a suite; facts are generated, talk has conversations and documents of its own."""
    common: tuple[Path, ...] = ()
    """Common questions to ask beside what was told, in talk: JSON lines of question and answers."""
    common_questions: NotNegative = 100
    """How many of each such file."""
    distractors: tuple[Path, ...] = ()
    """More texts to stand between memory and question: a file or folder."""
    mode: tuple[str, ...] | None = None
    """Ways of answering, separated by commas, or all; else mplus, in talk chat too, in a suite all retrievers."""
    top: tuple[int, ...] | None = None
    """How many passages rag reads, by commas; else 1,2,3, in a suite 1."""
    levels: tuple[int, ...] | None = None
    """Distractor tokens at which is asked, by commas; else the task's own, or 0 to 160,000 in nine steps."""
    questions: NotNegative | None = None
    """Answerable questions, documents in perplexity; else 300, in a suite 150 of each set, in talk all."""
    at_most: dict[str, int] = Field(default_factory=dict)
    """Ask costly ways of answering only so many: full-context=40,memoryllm=40."""
    unanswerable: NotNegative | None = None
    """Questions that nothing answers; else a third as many in facts, all in talk, none in other tasks."""
    model: str = "smol-135m"
    """Built-in name, folder, repository, or folder of trained parts."""
    backbone: str = "smol-135m"
    """Backbone of a folder of trained parts."""
    prompt: PromptStyle | None = None
    """plain, short or completion; else the task's own."""
    examples: Annotated[int, Field(ge=0, le=3)] = 0
    """Worked examples, in completion."""
    together: bool = False
    """Other questions' contexts may be read as well: they are distractors too."""
    layout: dict[str, Any] = Field(default_factory=dict)
    """Memory settings other than the model's, such as recalled_tokens=512."""
    prompt_turns: NotNegative | None = None
    """Latest turns of a conversation that stand in the prompt, in chat; else as many as the model says."""
    gate: Literal["auto", "always", "never"] = "auto"
    """Whether memory is read: as the model's gate decides, always or never."""
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None
    """Decline where the confidence in an answer is lower."""
    max_new_tokens: Positive | None = None
    """Most tokens of an answer; else 64 where the prompt is plain, 24 elsewhere."""
    batch: Positive = 16
    """Questions answered at once."""
    split: Literal["dev", "train", "test"] | None = None
    """Whose names and values facts has, whose texts talk: else dev. Which files of a suite: else all."""
    seed: int = 0
    """Decides which questions are asked, and of what."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""

    @field_validator("top")
    @classmethod
    def _some_passages(cls, top: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if top is not None and (not top or min(top) < 1):
            raise ValueError(f"{','.join(map(str, top))}: expected numbers of passages, at least 1.")
        return top

    @property
    def own_split(self) -> Split:
        """Whose names, values and texts our own tasks have.

        Raises:
            ValueError: The split is one that only files have.
        """
        if self.split == "test":
            raise ValueError(f"split='test': {self.task} has dev and train. Name a file that holds what to test with.")
        return self.split or "dev"
