"""``mplus calibrate``: from the raw answers of a run to a confidence that means what it says."""

from pathlib import Path
from typing import Annotated

import typer

from mplus.cli.terminal import show


def calibrate(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs of mplus evaluate to fit on, with unanswerable questions.")
    ],
    check: Annotated[Path | None, typer.Option(help="Folder of another run, on other data, to check it on.")] = None,
    into: Annotated[Path | None, typer.Option(help="Folder whose mplus.json keeps the calibration.")] = None,
    mode: Annotated[str, typer.Option(help="Way of answering whose answers count.")] = "mplus",
) -> None:
    """Fit the confidence of answers on runs, and say which abstain_below to use."""
    from mplus.evaluation.confidence_fit import checked, fitted, given_answers, keep, read_of, recall_of
    from mplus.evaluation.report import as_cell

    answers = [answer for run in runs for answer in given_answers(run, mode)]
    scorers = {recall_of(run) for run in runs}
    if len(scorers) > 1:
        raise ValueError(f"The runs recalled with {', '.join(sorted(scorers))}; expected one scorer. Fit one for each.")
    readings = {read_of(run, mode) for run in runs}
    if len(readings) > 1:
        raise ValueError("Some runs read memory as latents, others as text; expected one way. Fit one for each.")
    calibration = fitted(answers, recall=scorers.pop(), read=readings.pop())
    print(f"Fitted on {calibration.num_answers:,} answers of {', '.join(map(str, runs))}.")
    found = checked(answers if check is None else given_answers(check, mode), calibration)
    whose = "the same answers (pass --check for others)" if check is None else str(check)
    print(f"On {whose}: calibration error {found.error:.3f}.")
    show(
        ("abstain below", "unanswerable declined", "answerable declined", "answerable right"),
        [
            (f"{t.below:.2f}", as_cell(t.abstention.recall), as_cell(t.abstention.wrongly_declined), as_cell(t.right))
            for t in found.thresholds
        ],
    )
    print(f"Recommended: abstain_below={found.recommended.below:.2f}")
    if into is not None:
        keep(calibration, into)
        print(f"Kept in {into / 'mplus.json'}")
