"""``mplus export``: a memory in one portable file, or its texts."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mplus.cli.opened import located
from mplus.cli.options import MemoryOption, ModelOption
from mplus.given import is_url, path_of
from mplus.moments import as_text

if TYPE_CHECKING:
    from mplus import Memory


def export(
    file: Annotated[str, typer.Argument(help="File or url to write, such as alice.mplus.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    text: Annotated[
        bool,
        typer.Option(
            "--text", help="Write the texts that were kept, as lines of JSON; import --from jsonl reads them."
        ),
    ] = False,
) -> None:
    """Write a memory into one portable file."""
    from mplus import MPlus

    store, name = located(memory)
    held = store.load(name, MPlus.from_pretrained(model))
    if not text:
        held.export(file)
        size = "" if is_url(file) else f" ({Path(file).expanduser().stat().st_size / 2**20:.1f} MiB)"
        print(f"Wrote {memory!r} to {file}{size}")
        return
    path = path_of("file", file)
    lines = list(text_lines(held))
    write_lines(path, lines)
    left = len(held.sources()) - len(lines)
    unkept = f"; {left:,} sources were written without keeping their text" if left else ""
    print(f"Wrote the texts of {len(lines):,} sources of {memory!r} to {file}{unkept}")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of JSON; half a character, which the name of a file may have, is an escape.

    A file is there whole or as it was before, and on disk at the end.
    """
    from mplus.storage.folder import Folder

    content, path = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"), path.resolve()
    if path.exists() and not path.is_file():  # a pipe
        path.write_bytes(content)
        return
    place = Folder(path.parent)
    place.exchange(path.name, content)
    place.sync()


def text_lines(memory: "Memory") -> Iterator[str]:
    """Each source whose text was kept, as a line of JSON."""
    for source in memory.sources():
        if source.texts:
            about = {"text": "\n".join(source.texts), "source": source.name, "metadata": dict(source.metadata)}
            times = {"first_written": source.first_written, "at": as_text(source.latest)}
            yield json.dumps({**about, **times}, ensure_ascii=False, default=str)
