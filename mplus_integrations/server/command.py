"""``mplus serve``, ``mplus mcp`` and ``mplus keys``; the ``mplus`` command imports them when they are called."""

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mplus.cli.options import JsonOption, MemoryOption, ModelOption
from mplus.cli.settings_options import given_settings, takes
from mplus.cli.terminal import moment, show
from mplus_integrations.server.keys import KeyRing
from mplus_integrations.server.settings import ServeSettings, read_settings

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of these settings by name.")]
LOCAL = "127.0.0.1"


@takes(ServeSettings, model=("--model", "-m"))
def serve(*, config: ConfigOption = None, **options: Any) -> None:
    """Serve the model and its memories to many users: OpenAI's API, an API of memories, and MCP."""
    settings = read_settings(given_settings(ServeSettings, options), config)
    # By name: the cluster is built on this package.
    where = "mplus_integrations.cluster.running" if settings.ray else "mplus_integrations.server.running"
    try:
        running = import_module(where)
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ImportError(
            "mplus serve --ray needs Ray, which is not installed: pip install 'mplus-memory[cluster]'"
        ) from error
    running.run(settings)


def mcp(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option(help="stdio, for a program that starts this one; http, for this machine."),
    ] = "stdio",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of http; the tools are at /mcp.")] = 8001,
) -> None:
    """Give an agent a memory by the Model Context Protocol: remember, recall, ask, forget, list."""
    from mplus.cli.opened import located

    store, name = located(memory)
    settings = read_settings(
        {"model": model, "memories": store.root, "host": LOCAL, "port": port, "require_key": False, "metrics": False}
    )
    from mplus_integrations.server.running_mcp import run_mcp

    run_mcp(settings, name, over_http=transport == "http")


def keys(
    action: Annotated[Literal["add", "list", "revoke"], typer.Argument(help="add, list or revoke.")],
    name: Annotated[str | None, typer.Argument(help="add: memory of the key; revoke: id of the key.")] = None,
    file: Annotated[Path, typer.Option(help="File of the keys; it holds their hashes only.")] = Path("keys.json"),
    opens: Annotated[list[str] | None, typer.Option(help="add: another memory that the key opens. Repeatable.")] = None,
    opens_all: Annotated[bool, typer.Option("--opens-all", help="add: the key opens every memory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make, list and revoke the API keys of mplus serve --keys. A running server sees changes at once."""
    ring = KeyRing(file)
    if action == "list":
        _list(ring, as_json=as_json)
    elif name is None:
        raise ValueError(f"mplus keys {action}: expected {'a memory' if action == 'add' else 'the id of a key'} too.")
    elif action == "revoke":
        ring.revoke(name)
        print(f"Revoked {name}.")
    else:
        known, key = ring.add(name, opens=None if opens_all else opens or ())
        made = {"id": known.id, "key": key, "memory": known.memory}
        print(json.dumps(made) if as_json else f"{key}\n\nShown once. Its id is {known.id}; its memory is {name!r}.")


def _list(ring: KeyRing, *, as_json: bool) -> None:
    found = [
        {"id": k.id, "memory": k.memory, "opens": "all" if k.opens is None else list(k.opens), "created": k.created}
        for k in ring.list()
    ]
    if as_json:
        print(json.dumps(found))
        return
    rows = [
        (known.id, known.memory, "all" if known.opens is None else ", ".join(known.opens), moment(known.created))
        for known in ring.list()
    ]
    show(("key", "memory", "opens too", "made"), rows)
