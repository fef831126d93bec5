"""``mplus memories``: what is kept for you."""

import json
from dataclasses import asdict

from mplus.cli.opened import user_store
from mplus.cli.options import JsonOption
from mplus.cli.terminal import moment, show


def memories(as_json: JsonOption = False) -> None:
    """List the memories kept for you, with sizes and times."""
    stored = user_store().list()
    if as_json:
        print(json.dumps([asdict(memory) for memory in stored]))
        return
    names = [one.name if one.id == one.name else f"{one.name} ({one.id})" for one in stored]
    rows = [
        (name, f"{one.nbytes / 2**20:.1f}", moment(one.saved), moment(one.used))
        for name, one in zip(names, stored, strict=True)
    ]
    show(("memory", "MiB", "saved", "used"), rows)
