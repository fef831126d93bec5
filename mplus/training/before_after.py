"""The table at the end of a training run: what the model answers from memory, before and after.

OUT/evaluation/NAME/before, after     raw answers, so that a run goes on where it was stopped
OUT/evaluation/NAME/table.md          the table
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mplus.evaluation.evaluation_settings import EvaluationSettings
from mplus.evaluation.experiment import Experiment
from mplus.evaluation.modes import has_adapter
from mplus.evaluation.opening import open_model
from mplus.evaluation.report import Line, lines, table
from mplus.evaluation.suite import Suite
from mplus.model import MPlus
from mplus.progress import StageProgress, followed_by_stage, is_watched
from mplus.training.run_folder import RunFolder
from mplus.training.run_settings import RunSettings
from mplus.training.talk.corpus import talk_files

TALK_QUESTIONS, TALK_UNKNOWN = 60, 20
"""Questions about held-out conversations and documents: told, and never told."""
HEADINGS = ("asked", "tokens between", "n", "contains", "F1", "right source first", "declined", "wrongly declined")

Answers = Mapping[str, Sequence[dict[str, Any]]]
"""Raw answers by name of what was asked."""


def before_and_after(settings: RunSettings, folder: RunFolder) -> str:
    """Ask the model that a run began with and the one that it trained the same questions, each in its own way.

    Args:
        settings: Of the run.
        folder: Of the run; answers that it has already are not asked for again.

    Returns:
        The table, in Markdown.
    """
    name = "talk" if settings.evaluate == "talk" else Path(settings.evaluate).resolve().name
    place = folder.evaluation / name
    found: list[Answers] = []
    read: list[str] = []
    for when, model_name in (("before", settings.model), ("after", str(folder.model))):
        device = "cpu" if settings.device == "cpu" else "auto"
        model = open_model(model_name, device=device, dtype=settings.dtype or "auto")
        with followed_by_stage(is_watched(), "question") as progress:
            silent: StageProgress = progress or (lambda stage, done, total: None)
            told: StageProgress = lambda stage, done, total, when=when: silent(f"{when}: {stage}", done, total)
            found.append(_asked(settings, model, place / when, told))
        read.append("through its read adapter" if has_adapter(model) else "without an adapter")
    text = _table(*found)
    text = f"Before → after: memory is read {read[0]} → {read[1]}.\n\n{text}\n"
    place.mkdir(parents=True, exist_ok=True)
    (place / "table.md").write_text(text, encoding="utf-8")
    return f"{text}\nThe answers are in {place}"


def _asked(settings: RunSettings, model: MPlus, out: Path, progress: StageProgress) -> Answers:
    """Answers of one model, from memory alone."""
    about: dict[str, Any] = {"model": model.name, "mode": ("mplus",), "seed": settings.seed}
    if settings.evaluate != "talk":
        asked = EvaluationSettings(task="suite", data=Path(settings.evaluate), **about)
        return Suite(asked, out, model=model).run(progress).answers
    asked = EvaluationSettings(task="talk", questions=TALK_QUESTIONS, unanswerable=TALK_UNKNOWN, **about)
    experiment = Experiment(asked, out, model=model, talk_files=talk_files(asked.own_split))
    return {"talk": experiment.answered(progress).rows}


def _table(before: Answers, after: Answers) -> str:
    """A row for each set and level: figures before and after."""
    rows: list[tuple[str, ...]] = []
    for name, answers in after.items():
        earlier = {line.level: line for line in lines(before.get(name, ()))}
        rows += [(name, *_cells(earlier.get(line.level), line)) for line in lines(answers)]
    return table(HEADINGS, rows)


def _cells(before: Line | None, after: Line) -> tuple[str, ...]:
    def both(figure: Any) -> str:
        return " → ".join(
            "–" if (value := line and figure(line)) is None else f"{value:.3f}" for line in (before, after)
        )

    return (
        f"{after.level:,}",
        str(after.questions),
        both(lambda line: line.contains and line.contains.mean),
        both(lambda line: line.f1 and line.f1.mean),
        both(lambda line: line.found[1].mean if line.found else None),
        both(lambda line: line.abstention.recall),
        both(lambda line: line.abstention.wrongly_declined),
    )
