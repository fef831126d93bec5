"""Options that several commands share."""

from typing import Annotated, Literal

import typer

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Built-in name, local folder or hub repository.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Where the model runs: auto, cpu, cuda, cuda:1.")]
DtypeOption = Annotated[
    str,
    typer.Option("--dtype", help="Of the weights: auto, float32, bfloat16, or int8, the quickest on many CPUs."),
]
GateOption = Annotated[
    Literal["auto", "always", "never"],
    typer.Option("--gate", help="Whether an answer reads memory: as the model's gate decides, always, or never."),
]
DeclineOption = Annotated[
    float | None,
    typer.Option(
        "--decline-threshold",
        help="Say that you do not know from this probability on that memory does not answer: 1 hardly ever, 0 whenever "
        "that is likeliest. As the model was trained by default.",
    ),
]
MemoryOption = Annotated[
    str, typer.Option("--memory", help="Name of a memory kept for you, or a folder (with a slash in it).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Read only what was said from then on, such as 2024-03-03.")
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Read only what was said up to then.")]
AsOfOption = Annotated[str | None, typer.Option("--as-of", help="The memory as it was then: nothing said later.")]
