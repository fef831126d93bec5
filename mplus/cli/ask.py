"""``mplus ask``: one question, answered from a memory."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from mplus.cli.opened import opened
from mplus.cli.options import (
    AsOfOption,
    DeclineOption,
    DeviceOption,
    DtypeOption,
    GateOption,
    JsonOption,
    MemoryOption,
    ModelOption,
    SinceOption,
    UntilOption,
)


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Say that you do not know where confidence is lower, 0 to 1.")
    ] = None,
    gate: GateOption = "auto",
    decline_threshold: DeclineOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question; the answer comes from memory."""
    with opened(memory, model, device=device, dtype=dtype) as (loaded, held):
        stream = loaded.stream(
            held,
            [{"role": "user", "content": question}],
            max_new_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            abstain_below=abstain_below,
            gate=gate,
            decline_threshold=decline_threshold,
            since=since,
            until=until,
            as_of=as_of,
        )
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
        generation = stream.generation
    if as_json:
        described = asdict(generation) | {"recalled": [r._asdict() for r in generation.recalled]}
        described["evidence"] = generation.evidence and generation.evidence._asdict()
        print(json.dumps(described, default=str))
        return
    print()
    if generation.recalled:
        shares = ", ".join(f"{r.source} {r.share:.0%}" for r in generation.recalled[:4])
        print(f"(recalled: {shares}; confidence {generation.confidence:.2f})")
