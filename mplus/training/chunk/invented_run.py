"""Made-up passages in a run: an adapter learns to ask, passages and questions are made once, and read in shards."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.recall.late_interaction import LateInteraction
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.default_data import DefaultData
from mplus.training.chunk.invented import ASKER, AskingSamples, Inventor, write_squad
from mplus.training.chunk.questions import Question, read_squad
from mplus.training.chunk.read_adapter import Reader, new_adapter
from mplus.training.chunk.read_adapter_task import ReaderTask
from mplus.training.chunk.samples import Samples
from mplus.training.loop import train_task
from mplus.training.run_folder import Log
from mplus.training.run_settings import RunSettings

FILE = "invented.json"
SHARD = 1000
"""Passages that are remembered together, about 130,000 tokens: a question is asked among these."""
MIXTURE = (("passage", 0.9), ("cloze", 0.06), ("continue", 0.04))


def invent(
    settings: RunSettings,
    folder: Path,
    model: MPlus,
    *,
    passages: Sequence[str],
    questions: Sequence[Question],
    accelerator: Accelerator,
    log: Log,
) -> Path:
    """Make passages and questions up, once for a run; returns their file, SQuAD JSON.

    Args:
        settings: How many.
        folder: Of the run.
        model: The backbone, where it computes.
        passages: Whose sentences are gone on with.
        questions: From which asking is learnt; their numbers are places in ``passages``.
        accelerator: Of the run.
        log: Of the run.
    """
    path = folder / FILE
    if path.exists():
        return path
    asking = Reader(
        model.weights, ChunkBank(model.weights, model.tokenizer, MemoryConfig()), new_adapter(model.weights, ASKER)
    )
    task = ReaderTask(asking, AskingSamples(model.tokenizer, passages, questions), ASKER, TrainedParts(), name="asker")
    parts = train_task(task, accelerator, folder / "stages" / "asker", log, settings)
    assert parts.read_adapter is not None
    made = Inventor(model, parts.read_adapter, passages, settings.seed).invent(settings.invented, log.say)
    write_squad(path, made)
    return path


def shards(
    path: Path, model: MPlus, computing: MPlus, scorer: LateInteraction, layer: int, *, only_layer: int | None = None
) -> list[Samples]:
    """Samples about the passages of a SQuAD file, shard by shard, encoded where ``computing`` is.

    Args:
        path: The file.
        model: The backbone.
        computing: The same model where texts are encoded.
        scorer: Recall as it will be at reading.
        layer: Whose states it scores.
        only_layer: The one layer whose states are kept; None: all of them.
    """
    passages, questions, _ = read_squad(path)
    found: list[Samples] = []
    for first in range(0, len(passages), SHARD):
        place = {number: n for n, number in enumerate(range(len(passages))[first : first + SHARD])}
        bank = ChunkBank(
            model.weights, model.tokenizer, MemoryConfig(), only_layer=only_layer, encoder=computing.weights
        )
        texts = bank.add([passages[number] for number in place], progress="invented passages")
        asked = [
            Question(q.text, q.answers, (place[q.passages[0]],), q.reply) for q in questions if q.passages[0] in place
        ]
        found.append(Samples(DefaultData(bank, asked, texts), scorer, layer, mixture=MIXTURE))
    return found
