"""Tell a model a few things, let it read more than 20,000 tokens, then ask: the answers come from memory alone.

make demo
"""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import mplus
from mplus_integrations import MPlusChat

PROJECT = Path(__file__).resolve().parent.parent
ENOUGH_TOKENS = 20_000

# What the user says, what is asked long after, and what must stand in a right answer.
FACTS = [
    ("My name is Miriam Castellanos.", "What is my name?", "Miriam"),
    ("I live in Bergen, near the harbour.", "Which city do I live in?", "Bergen"),
    ("My cat is called Pancake.", "What is my cat called?", "Pancake"),
    ("The code of my bicycle lock is 4719.", "What is the code of my bicycle lock?", "4719"),
    ("I am allergic to hazelnuts.", "What am I allergic to?", "hazelnut"),
    ("My dentist appointment is on Thursday at 9:30.", "On which day is my dentist appointment?", "Thursday"),
    ("My sister Ingrid lives in Toronto.", "Where does my sister Ingrid live?", "Toronto"),
    ("I work as a piano tuner.", "What do I do for a living?", "piano tuner"),
    ("My favourite colour is turquoise.", "What is my favourite colour?", "turquoise"),
    ("I keep the spare key in the blue teapot.", "Where do I keep the spare key?", "teapot"),
]


def main() -> int:
    console = Console()
    chat = MPlusChat(max_tokens=40)
    started = time.perf_counter()
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as bars:
        task = bars.add_task("pulling the default model", total=1)
        mplus.pull("smol-135m", progress=lambda stage, done, total: bars.update(task, completed=done, total=total))
    memory = chat.loaded.new_memory()
    chat = MPlusChat(model=chat.loaded, memory=memory, max_tokens=40)
    console.print(f"model ready after {time.perf_counter() - started:.1f} s")

    started = time.perf_counter()
    for number, (said, _, _) in enumerate(FACTS):
        chat.memorize(f"User: {said}", source=f"told-{number + 1}")
    read = read_own_files(chat)
    seconds = time.perf_counter() - started
    stats = memory.stats()
    console.print(
        f"wrote {len(FACTS)} facts, then {read:,} tokens of this project's own files: {stats.text_tokens:,} tokens in "
        f"{seconds:.0f} s ({stats.text_tokens / seconds:,.0f} tokens/s)\n{memory!r}",
        highlight=False,
    )

    table = Table(show_lines=False)
    for heading in ("asked", "answered from memory", "right", "recalled first", "seconds"):
        table.add_column(heading)
    right = 0
    for number, (_, question, expected) in enumerate(FACTS):
        started = time.perf_counter()
        answer = chat.invoke(question)
        is_right = expected.lower() in str(answer.content).lower()
        right += is_right
        recalled = answer.response_metadata["recalled"]
        best = max(recalled, key=lambda source: source["relevance"])["source"] if recalled else "-"
        mark = "[green]yes[/]" if is_right else f"[red]no[/] ({expected})"
        found = f"{best}{' (the right one)' if best == f'told-{number + 1}' else ''}"
        table.add_row(question, str(answer.content).strip(), mark, found, f"{time.perf_counter() - started:.1f}")
    console.print(table)
    console.print(f"{right} of {len(FACTS)} right; the prompts held nothing but the questions.")
    return 0 if right > len(FACTS) / 2 else 1


def read_own_files(chat: MPlusChat) -> int:
    """Write the project's own files into memory until they are long enough."""
    patterns = ("*.md", "docs/**/*.md", "mplus/**/*.py")
    files = [file for pattern in patterns for file in sorted(PROJECT.glob(pattern))]
    read = 0
    for file in files:
        if read >= ENOUGH_TOKENS:
            break
        text = file.read_text(encoding="utf-8")
        if text.strip():
            read += chat.memorize(text, source=str(file.relative_to(PROJECT)))
    return read


if __name__ == "__main__":
    sys.exit(main())
