"""What ``mplus inspect`` says of a memory."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mplus import Memory


def described(memory: "Memory") -> dict[str, Any]:
    """Everything, for a script."""
    return {
        "stats": asdict(memory.stats()),
        "sources": [asdict(s) | {"tokens": s.tokens._asdict()} for s in memory.sources()],
        "snapshots": [{"id": s.id, "label": s.label, "created": s.created} for s in memory.snapshots],
        "keeps_ledger": memory.state.ledger is not None,
    }


def shown(memory: "Memory") -> None:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    console, stats = Console(), memory.stats()
    pools = Table(title=repr(memory))
    for heading in ("pool", "tokens per layer", "MiB"):
        pools.add_column(heading)
    for name in ("short_term", "pending", "long_term"):
        pool = getattr(stats, name)
        pools.add_row(name, f"{max(pool.tokens, default=0):,}", f"{pool.nbytes / 2**20:.1f}")
    console.print(pools)
    listed = Table()
    for heading in ("source", "text tokens", "short-term", "pending", "long-term", "first written", "last written"):
        listed.add_column(heading)
    for source in memory.sources():
        listed.add_row(
            source.name + (" (pinned)" if source.pinned else ""),
            f"{source.text_tokens:,}",
            *(f"{count:,}" for count in source.tokens),
            _moment(source.first_written),
            _moment(source.last_written),
        )
    console.print(listed)
    if memory.snapshots:
        taken = Table()
        for heading in ("snapshot", "label", "taken", "sources"):
            taken.add_column(heading)
        for snapshot in memory.snapshots:
            held = sum(not source.forgotten for source in snapshot.state.sources)
            taken.add_row(snapshot.id, snapshot.label, _moment(snapshot.created), f"{held:,}")
        console.print(taken)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
