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
    file: Annotated[Path | None, typer.Argument(help="File of the task; the same as --data.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the raw answers; the same folder goes on.")] = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Measure what is remembered: write contexts, then distractors, and ask after more and more of them."""
    if file is not None and options.get("data") is not None:
        raise ValueError(f"{file} and --data {options['data']}: expected one file. Leave one of them out.")
    given = given_settings(EvaluationSettings, options)
    asked = checked(EvaluationSettings, given | ({"data": file} if file is not None else {}))
    if asked.task == "suite":
        _run_suite(asked, out, as_json=as_json)
        return
    from mplus.evaluation.experiment import Experiment
    from mplus.evaluation.modes import lacking

    bar = AnswerBar()
    experiment = Experiment(asked, out, bar.writing, talk_files=_own_talk(asked))
    is_perplexity = asked.task == PERPLEXITY
    answers = experiment.scored(bar) if is_perplexity else experiment.answered(bar)
    bar.close()
    if "all" in (asked.mode or ()):
        for name, how in lacking(["all"]).items():
            print(f"Not asked: {name}, whose embedder is not installed ({how}).", file=sys.stderr)
    if is_perplexity:
        _show_perplexities(answers, as_json=as_json)
    else:
        _show_answers(answers, f"{asked.task}: {experiment.model.name}", as_json=as_json)


def _run_suite(asked: EvaluationSettings, out: Path | None, *, as_json: bool) -> None:
    from mplus.evaluation.comparison import as_json as figures
    from mplus.evaluation.comparison import tables
    from mplus.evaluation.suite import Suite

    bar = AnswerBar()
    ran = Suite(asked, out, bar.writing).run(bar)
    bar.close()
    for line in ran.skipped:
        print(f"Not asked: {line}.", file=sys.stderr)
    if as_json:
        print(json.dumps(figures(ran.answers) | {"skipped": ran.skipped}))
        return
    for headings, found in tables(ran.answers):
        show(headings, found)
    print(f"Tables, figures and raw answers: {ran.folder}")


def _own_talk(asked: EvaluationSettings) -> tuple[Path, ...]:
    """Conversations and documents of our own, where talk is asked without a file."""
    if asked.task != "talk" or asked.data is not None:
        return ()
    from mplus.training.talk.corpus import talk_files

    return talk_files(asked.own_split)


def _show_answers(answers: "RawAnswers", title: str, *, as_json: bool) -> None:
    from mplus.evaluation.plots import can_plot, retention
    from mplus.evaluation.report import as_json as figures
    from mplus.evaluation.report import groups_as_json, lines, markdown, tables

    report = lines(answers.rows)
    by_group = groups_as_json(answers.rows)
    (answers.folder / "figures.json").write_text(json.dumps(figures(report), indent=1) + "\n", encoding="utf-8")
    if by_group:
        (answers.folder / "groups.json").write_text(json.dumps(by_group, indent=1) + "\n", encoding="utf-8")
    (answers.folder / "table.md").write_text(markdown(answers.rows), encoding="utf-8")
    if not can_plot():
        print("No plot: matplotlib is not installed (pip install 'mplus-memory[evaluate]').", file=sys.stderr)
    elif any(line.contains is not None for line in report):
        retention(report, answers.folder / "retention.png", title=title)
    if as_json:
        print(json.dumps(figures(report) if not by_group else {"modes": figures(report), "groups": by_group}))
        return
    for headings, found in tables(answers.rows):
        show(headings, found)
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
