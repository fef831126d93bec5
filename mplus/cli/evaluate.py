"""``mplus evaluate``: how much is remembered after how much. Its options are the fields of ``EvaluationSettings``."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus.cli.options import JsonOption
from mplus.cli.settings_options import checked, given_settings, takes
from mplus.cli.terminal import AnswerBar, show
from mplus.evaluation.evaluation_settings import PERPLEXITY, EvaluationSettings

if TYPE_CHECKING:
    from mplus.evaluation.raw_answers import RawAnswers


@takes(EvaluationSettings, model=("--model", "-m"), layout=("--set",))
def evaluate(
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the raw answers; the same folder goes on.")] = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Measure what is remembered: write contexts, then distractors, and ask after more and more of them."""
    asked = checked(EvaluationSettings, given_settings(EvaluationSettings, options))
    from mplus.evaluation.experiment import Experiment

    bar = AnswerBar()
    experiment = Experiment(asked, out, bar.writing)
    is_perplexity = asked.task == PERPLEXITY
    answers = experiment.scored(bar) if is_perplexity else experiment.answered(bar)
    bar.close()
    if is_perplexity:
        _show_perplexities(answers, as_json=as_json)
    else:
        _show_answers(answers, f"{asked.task}: {experiment.model.name}", as_json=as_json)


def _show_answers(answers: "RawAnswers", title: str, *, as_json: bool) -> None:
    from mplus.evaluation.plots import can_plot, retention
    from mplus.evaluation.report import HEADINGS, KIND_HEADINGS, cells, kinds, lines, markdown
    from mplus.evaluation.report import as_json as figures

    report = lines(answers.rows)
    (answers.folder / "figures.json").write_text(json.dumps(figures(report), indent=1) + "\n", encoding="utf-8")
    (answers.folder / "table.md").write_text(markdown(report), encoding="utf-8")
    if not can_plot():
        print("No plot: matplotlib is not installed (pip install 'mplus-memory[evaluate]').", file=sys.stderr)
    elif any(line.contains is not None for line in report):
        retention(report, answers.folder / "retention.png", title=title)
    if as_json:
        print(json.dumps(figures(report)))
        return
    show(HEADINGS, [cells(line) for line in report])
    if by_kind := kinds(report):
        show(KIND_HEADINGS, by_kind)
    print(f"Raw answers, table and plot: {answers.folder}")


def _show_perplexities(answers: "RawAnswers", *, as_json: bool) -> None:
    from mplus.evaluation.perplexity import figures

    report = figures(answers.rows)
    if as_json:
        print(json.dumps([asdict(figure) for figure in report]))
        return
    show(
        ("condition", "tokens", "documents", "perplexity", "ratio to the backbone"),
        [(f.name, f"{f.level:,}", str(f.perplexity.size), str(f.perplexity), str(f.ratio or "–")) for f in report],
    )
    print(f"Every document: {answers.folder / 'answers.jsonl'}")
