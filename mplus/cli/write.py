"""``mplus write``: text into a memory."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mplus.cli.opened import opened
from mplus.cli.options import DeviceOption, DtypeOption, JsonOption, MemoryOption, ModelOption
from mplus.progress import is_watched


def write(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Text to remember; - or nothing reads standard input.")
    ] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="Text file to remember.")] = None,
    source: Annotated[str | None, typer.Option(help="Name under which it can be recalled and forgotten.")] = None,
    at: Annotated[
        str | None, typer.Option(help="When it was said, such as 2024-03-03 or 2024-03-03T10:00:00+01:00; else now.")
    ] = None,
    dated: Annotated[bool, typer.Option("--dated", help="With --at, begin each text with the date.")] = False,
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write text into a memory."""
    documents: list[tuple[str, str | None]] = [(text, source) for text in texts or [] if text != "-"]
    documents += [(path.read_text(encoding="utf-8"), source or path.name) for path in file or []]
    if not documents or "-" in (texts or []):
        documents.append((sys.stdin.read(), source))
    reports: list[dict[str, Any]] = []
    with opened(memory, model, device=device, dtype=dtype) as (loaded, held):
        for text, name in documents:
            report = loaded.write(held, text, source=name, progress=is_watched(), at=at, dated=dated)
            reports.append(vars(report))
        described = repr(held)
    if as_json:
        print(json.dumps(reports))
        return
    tokens = sum(report["text_tokens"] for report in reports)
    print(f"Wrote {tokens:,} tokens in {sum(r['seconds'] for r in reports):.1f} s. {described}")
