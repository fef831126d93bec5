"""``mplus chat``: a conversation in the terminal whose memory survives it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mplus.cli.opened import located
from mplus.cli.options import DeclineOption, DeviceOption, DtypeOption, GateOption, MemoryOption, ModelOption

if TYPE_CHECKING:
    from mplus import Memory, MPlus
    from mplus.generation.requests import GenerationOptions

HELP = """\
/remember TEXT   write something down
/forget SOURCE   forget a source
/sources         what is remembered
/quit            leave (so does Ctrl-D)"""
LARGER = " A larger model, with memories of its own, answers more: mplus chat --model qwen-1.5b --memory larger."
"""Beside the default model."""
SHOWN = 100
"""Most characters of a source's text that /sources shows."""


@dataclass
class Talk:
    """A conversation: every turn is written into memory, and the latest ones also stand in the prompt."""

    model: "MPlus"
    memory: "Memory"
    save: Callable[[], None]
    prompt_turns: int | None
    """How many of the latest turns before a question stand in the prompt; None: as many as fit."""
    max_tokens: int
    """Of an answer."""
    options: "GenerationOptions"
    """Of every answer, beside these."""
    turns: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])
    """What was said since the start: the source and the message of each turn."""

    def write(self, text: str, role: str | None = None) -> str:
        """Write a text as a source of its own, with its role if it is a turn, and save. Returns the source's name."""
        known = {source.name for source in self.memory.sources()}
        number, first = 1, time.strftime("chat %Y-%m-%d %H:%M:%S")
        name = first
        while name in known:
            number += 1
            name = f"{first} ({number})"
        about = {} if role is None else {"role": role}
        self.model.write(self.memory, text, source=name, metadata=about, keep_text=True)
        self.save()
        return name

    def say(self, message: dict[str, str]) -> None:
        """Write a turn into memory."""
        from mplus import turn_text

        if text := turn_text(message):
            self.turns.append((self.write(text, message["role"]), message))

    def standing(self, question: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
        """The turns that stand in the prompt before a question."""
        from mplus import prompt_start

        said = [message for _, message in self.turns]
        start = prompt_start(said, len(said), self.prompt_turns)
        room = self.model.prompt_room(self.memory) - self.max_tokens
        while start < len(said) and self.model.count_tokens([*said[start:], question]) > room:
            start += 1
        return self.turns[start:]


def chat(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 192,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that occur in the question or answer less likely.")
    ] = 1.1,
    prompt_turns: Annotated[
        int | None,
        typer.Option(min=0, help="Latest turns that also stand in the prompt; as many as suit the model by default."),
    ] = None,
    gate: GateOption = "auto",
    decline_threshold: DeclineOption = None,
) -> None:
    """Talk to a model that remembers what you told it, also next week."""
    from mplus import MPlus
    from mplus.checkpoint.built_in import DEFAULT_MODEL
    from mplus.generation.sampling import SamplingParams

    console = Console()
    store, name = located(memory)
    with console.status("loading the model"):
        loaded = MPlus.from_pretrained(model, device=device, dtype=dtype)
    with store.open(name, loaded) as held:
        hint = LARGER if model == DEFAULT_MODEL else ""
        console.print(f"[dim]{held!r}\nType /help for commands.{hint}[/dim]", highlight=False)
        turns = loaded.prompt_turns if prompt_turns is None else prompt_turns
        save = partial(held.save, store.path(name))
        options: GenerationOptions = {
            "temperature": temperature,
            "repetition_penalty": repetition_penalty,
            "gate": gate,
            "decline_threshold": decline_threshold,
        }
        # What is out of range is an error now, not at the first answer.
        SamplingParams.model_validate({**options, "max_new_tokens": max_tokens})
        talk = Talk(loaded, held, save, turns, max_tokens, options)
        while True:
            try:
                line = console.input("[bold cyan]you:[/] ").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                return
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                _command(console, talk, line)
            elif line:
                _turn(console, talk, line)
            save()


def _command(console: Console, talk: Talk, line: str) -> None:
    word, _, rest = line.partition(" ")
    if word == "/remember" and rest.strip():
        talk.write(rest.strip())
        console.print("[dim]noted[/dim]")
    elif word == "/forget" and rest.strip():
        name = rest.strip()
        console.print(f"[dim]{talk.memory.forget(name)} memory tokens forgotten[/dim]")
        talk.turns = [(source, message) for source, message in talk.turns if source != name]
    elif word == "/sources":
        for source in talk.memory.sources():
            text = " ".join(" ".join(source.texts).split())
            shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
            about = f"{source.name}: {source.memory_tokens + source.tail_tokens} tokens. {shown}"
            console.print(about, style="dim", highlight=False, markup=False)
    else:
        console.print(HELP, highlight=False, style="dim")


def _turn(console: Console, talk: Talk, line: str) -> None:
    question = {"role": "user", "content": line}
    console.print("[bold green]m+:[/] ", end="")
    standing = talk.standing(question)
    # What is told is on disk before the answer begins. The answer reads memory as it was: the message itself, and the
    # turns before it that stand in the prompt, are not read twice.
    before, here = talk.memory.fork(), {source for source, _ in standing}
    talk.say(question)
    options: GenerationOptions = {
        **talk.options,
        "max_new_tokens": talk.max_tokens,
        "where": (lambda name, _: name not in here) if here else None,
    }
    stream = talk.model.stream(before, [*(message for _, message in standing), question], **options)
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
    elif any(source.name not in here for source in before.sources()):
        console.print("(not from memory)", style="dim", highlight=False, markup=False)
    talk.say({"role": "assistant", "content": answer.text})
