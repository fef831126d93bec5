"""``mplus inspect``: what a memory holds."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mplus.cli.opened import opened
from mplus.cli.options import AsOfOption, JsonOption, MemoryOption, ModelOption
from mplus.cli.terminal import moment, show

if TYPE_CHECKING:
    from mplus import Memory


def inspect(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a memory holds: pools, bytes, sources, snapshots."""
    with opened(memory, model) as (_, held):
        if as_of is not None:
            held = held.as_of(as_of)
        if as_json:
            print(json.dumps(_described(held), default=str))
        else:
            _show(held)


def _described(memory: "Memory") -> dict[str, Any]:
    """Everything, for a script."""
    return {
        "stats": asdict(memory.stats()),
        "sources": [asdict(s) | {"tokens": s.tokens._asdict()} for s in memory.sources()],
        "snapshots": [{"id": s.id, "label": s.label, "created": s.created} for s in memory.snapshots],
        "keeps_ledger": memory.state.ledger is not None,
    }


def _show(memory: "Memory") -> None:
    """Tables for people."""
    stats = memory.stats()
    pools = {"short_term": stats.short_term, "pending": stats.pending, "long_term": stats.long_term}
    show(
        ("pool", "tokens per layer", "MiB"),
        [(name, f"{max(p.tokens, default=0):,}", f"{p.nbytes / 2**20:.1f}") for name, p in pools.items()],
        title=repr(memory),
    )
    show(
        ("source", "text tokens", "short-term", "pending", "long-term", "first written", "last written"),
        [
            (
                source.name + (" (pinned)" if source.pinned else ""),
                f"{source.text_tokens:,}",
                *(f"{count:,}" for count in source.tokens),
                moment(source.first_written),
                moment(source.last_written),
            )
            for source in memory.sources()
        ],
    )
    if memory.snapshots:
        rows = [
            (one.id, one.label, moment(one.created), f"{sum(not s.forgotten for s in one.state.sources):,}")
            for one in memory.snapshots
        ]
        show(("snapshot", "label", "taken", "sources"), rows)
