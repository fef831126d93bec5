"""A run of the published recipe: any backbone, any texts, one process or many."""

import random
from typing import Any

from accelerate import Accelerator

from mplus.checkpoint.parts import TrainedParts
from mplus.model import MPlus
from mplus.training.chunk.plain_text import Document, Episodes, held_out, read_documents
from mplus.training.chunk.questions import read_dialogues, read_squad
from mplus.training.loop import train_task
from mplus.training.published.stage_task import PublishedTask
from mplus.training.published.stages import Stage, published_stages
from mplus.training.published.trained_modules import PartSizes, TrainableParts
from mplus.training.run_folder import RunFolder
from mplus.training.run_settings import RunSettings

DIALOGUES = 2000


class PublishedRun:
    """Model and texts of a run, and its stages by name."""

    def __init__(self, settings: RunSettings, folder: RunFolder, accelerator: Accelerator) -> None:
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.log = folder.log(writes=accelerator.is_main_process)
        self.model = MPlus.from_pretrained(
            settings.model, device=str(accelerator.device), dtype=settings.dtype or "auto"
        )
        documents = read_texts(settings)
        self._learnt, self._held_out = held_out(documents, random.Random(f"{settings.seed}/held out"))
        self._stages = published_stages(self.model.weights.backbone, **_changes(settings))

    def stage(self, name: str, start: TrainedParts) -> TrainedParts:
        """Train a stage from the parts that the one before it left."""
        settings, accelerator = self.settings, self.accelerator
        stage = self._stages[name]
        if name in settings.steps:
            stage = stage.model_copy(update={"steps": settings.steps[name]})
        if start.write_adapter is None:
            # A read adapter that came without one was trained to read other tokens than these.
            start = TrainedParts(late=start.late, recall_layer=start.recall_layer)
        sizes = PartSizes(rank=settings.rank, retriever_size=settings.retriever_size or PartSizes.retriever_size)
        task = PublishedTask(
            TrainableParts(self.model.weights.backbone, sizes, seed=settings.seed, start=start),
            stage,
            self._episodes(stage, self._learnt),
            held_out=self._measured(stage),
            start=start,
            seed=settings.seed,
            process=accelerator.process_index,
            autocast=lambda: accelerator.autocast(),
        )
        self.log.say(
            f"{name}: {len(self._learnt)} documents, {stage.steps} steps; {stage.chunk_tokens} text tokens become "
            f"{stage.tokens_per_write}, short-term memory {stage.memory.short_term_tokens}, recalled "
            f"{stage.memory.recalled_tokens}"
        )
        return train_task(task, accelerator, self.folder.stage(name), self.log, settings)

    def _episodes(self, stage: Stage, documents: list[Document]) -> Episodes:
        return Episodes(
            documents,
            self.model.tokenizer,
            short_tokens=stage.short_tokens,
            chunk_tokens=(stage.minimum_chunk_tokens, stage.chunk_tokens),
            target_tokens=stage.target_tokens,
        )

    def _measured(self, stage: Stage) -> Episodes | None:
        """Held-out episodes; None if no document is held out, or none is long enough."""
        try:
            return self._episodes(stage, self._held_out) if self._held_out else None
        except ValueError:
            return None


def read_texts(settings: RunSettings) -> list[Document]:
    """All given data as documents: texts, articles with questions, conversations."""
    documents = read_documents(settings.texts) if settings.texts else []
    if settings.squad is not None:
        passages, _, articles = read_squad(settings.squad)
        joined: dict[int, list[str]] = {}
        for passage, article in zip(passages, articles, strict=True):
            joined.setdefault(article, []).append(passage)
        documents += [Document(f"{settings.squad}:{n}", "\n\n".join(texts)) for n, texts in joined.items()]
    if settings.dialogues is not None:
        names, talks = read_dialogues(settings.dialogues, DIALOGUES, random.Random(settings.seed))
        documents += [Document(name, talk) for name, talk in zip(names, talks, strict=True)]
    return documents


def _changes(settings: RunSettings) -> dict[str, Any]:
    """What the settings say differently from the presets, for all stages."""
    found: dict[str, Any] = {
        "tokens_per_write": settings.tokens_per_write,
        "blocks": settings.blocks,
        "chunk_tokens": settings.chunk_tokens,
        "target_tokens": settings.target_tokens,
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
    }
    if settings.learning_rate is not None:
        found["final_learning_rate"] = settings.learning_rate / 10
    return {name: value for name, value in found.items() if value is not None}
