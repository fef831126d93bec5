"""``mplus import``: a memory out of a portable file, or what another program exported."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus.cli.brought import Brought, Origin, read_export
from mplus.cli.opened import located, opened
from mplus.cli.options import DeviceOption, DtypeOption, ModelOption
from mplus.given import path_of
from mplus.progress import is_watched

if TYPE_CHECKING:
    from mplus import Memory, MPlus


def import_(
    file: Annotated[
        str, typer.Argument(help="Portable file or folder of a saved memory, or its url; or what --from exported.")
    ],
    memory: Annotated[
        str, typer.Option("--memory", help="Name that it gets, which must be free; with --from, memory to write into.")
    ] = "default",
    model: ModelOption = "smol-135m",
    origin: Annotated[
        Origin | None,
        typer.Option("--from", help="Program that exported the file: its conversations or memories are written."),
    ] = None,
    dated: Annotated[
        bool, typer.Option("--dated", help="With --from, begin each text with the date on which it was said.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Keep the memory in a portable file under a name, or write what another program exported."""
    from mplus import Memory, MPlus

    if dated and origin is None:
        raise ValueError("--dated without --from: a portable file has its texts as they were written. Leave it out.")
    if origin is not None:
        brought = read_export(path_of("file", file), origin)
        with opened(memory, model, device=device, dtype=dtype) as (loaded, held):
            written, replaced = bring(loaded, held, brought, dated=dated)
            described = repr(held)
        there = len(brought) - written - replaced
        print(f"Wrote {written:,}, replaced {replaced:,}, there already {there:,}. {described}")
        return
    store, name = located(memory)
    imported = Memory.load(file, MPlus.from_pretrained(model, device=device, dtype=dtype))
    store.put(name, imported)
    print(f"Imported {memory!r}: {imported!r}")


def bring(model: "MPlus", memory: "Memory", brought: list[Brought], *, dated: bool = False) -> tuple[int, int]:
    """Write what is new or has changed since the last import, as said at its time; returns how many of each."""
    known = {source.name: "\n".join(source.texts) for source in memory.sources()}
    changed = [one for one in brought if one.source in known and known[one.source] != one.text]
    new = [one for one in brought if one.source not in known]
    if changed or new:
        fork = memory.fork()
        for one in changed:
            fork.forget(one.source)
        written = {one.source for one in (*changed, *new)}
        texts, sources, metadata, at = zip(*(one for one in brought if one.source in written), strict=True)
        options: dict[str, Any] = {"source": sources, "metadata": metadata, "at": at, "dated": dated}
        model.write(fork, texts, keep_text=True, progress=is_watched(), **options)
        memory.adopt(fork)
    return len(new), len(changed)
