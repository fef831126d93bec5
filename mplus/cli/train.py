"""``mplus train``: train M+ onto any backbone, on any texts. Its options are the fields of ``RunSettings``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mplus.cli.settings_options import checked, given_settings, takes
from mplus.training.run_folder import RunFolder
from mplus.training.run_settings import RunSettings


@takes(RunSettings, model=("--model", "-m"))
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: settings, log, checkpoints, trained model.")],
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    **options: Any,
) -> None:
    """Train M+ onto a model; a run that was stopped goes on with --resume."""
    known = RunFolder(out).known_settings() if resume else {}
    settings = checked(RunSettings, known | given_settings(RunSettings, options))
    from mplus.training.run import run

    run(settings, out, resume=resume)
