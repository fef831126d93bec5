"""``mplus chat``: a conversation in the terminal whose memory survives it."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from mplus.cli.opened import located
from mplus.cli.options import MemoryOption, ModelOption

HELP = """\
/remember TEXT   write something down
/forget SOURCE   forget a source
/sources         what is remembered
/quit            leave (so does Ctrl-D)"""
KEPT_MESSAGES = 4
"""Recent messages that stay in the prompt, so that "and his brother?" has something to refer to."""


def chat(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 192,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
) -> None:
    """Talk to a model that remembers what you told it, also next week."""
    from mplus import MPlus

    console = Console()
    store, name = located(memory)
    with console.status("loading the model"):
        loaded = MPlus.from_pretrained(model)
    with store.open(name, loaded) as held:
        save = partial(held.save, store.path(name))
        console.print(f"[dim]{held!r}\nType /help for commands.[/dim]", highlight=False)
        history: list[dict[str, str]] = []
        while True:
            try:
                line = console.input("[bold cyan]you:[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                _command(console, loaded, held, line)
            elif line:
                _turn(console, loaded, held, save, history, line, max_tokens, temperature)
            save()


def _command(console: Console, model: Any, memory: Any, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/remember" and rest.strip():
        model.write(memory, rest, source=_source())
        console.print("[dim]noted[/dim]")
    elif word == "/forget" and rest.strip():
        console.print(f"[dim]{memory.forget(rest.strip())} memory tokens forgotten[/dim]")
    elif word == "/sources":
        for source in memory.sources():
            console.print(f"[dim]{source.name}: {source.memory_tokens} tokens[/dim]", highlight=False)
    else:
        console.print(HELP, highlight=False, style="dim")


def _turn(
    console: Console,
    model: Any,
    memory: Any,
    save: Callable[[], None],
    history: list[dict[str, str]],
    line: str,
    max_tokens: int,
    temperature: float,
) -> None:
    history.append({"role": "user", "content": line})
    console.print("[bold green]m+:[/] ", end="")
    # What is told is kept, and is on disk before the answer begins; questions say nothing about who asks.
    # The answer reads memory as it was: the message itself stands in the prompt.
    before = memory.fork()
    if not line.endswith("?"):
        model.write(memory, f"User: {line}", source=_source())
        save()
    recent = history[-KEPT_MESSAGES - 1 :]
    stream = model.stream(before, recent, max_new_tokens=max_tokens, temperature=temperature)
    try:
        for piece in stream:
            console.print(piece, end="", markup=False, highlight=False)
    except KeyboardInterrupt:
        stream.close()
    answer = stream.generation
    console.print()
    if answer.recalled:
        shares = ", ".join(f"{r.source} {r.share:.0%}" for r in answer.recalled[:3])
        console.print(f"(recalled: {shares})", style="dim", highlight=False, markup=False)
    history.append({"role": "assistant", "content": answer.text})


def _source() -> str:
    return time.strftime("chat %Y-%m-%d %H:%M:%S")
