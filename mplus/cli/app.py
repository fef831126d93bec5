"""The ``mplus`` command. Each of its commands is the file of the same name in this folder.

Heavy imports happen inside commands: ``mplus --help`` loads neither torch nor transformers.
"""

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from mplus.cli.ask import ask
from mplus.cli.backup import backup
from mplus.cli.calibrate import calibrate
from mplus.cli.chat import chat
from mplus.cli.convert import convert
from mplus.cli.delete import delete
from mplus.cli.export import export
from mplus.cli.forget import forget
from mplus.cli.import_ import import_
from mplus.cli.info import info
from mplus.cli.inspect import inspect
from mplus.cli.memories import memories
from mplus.cli.pin import pin
from mplus.cli.pull import pull
from mplus.cli.restore import restore
from mplus.cli.rollback import rollback
from mplus.cli.snapshot import snapshot
from mplus.cli.verify import verify
from mplus.cli.write import write
from mplus.errors import MPlusError
from mplus.installed import refuse_other_mplus

OPTIONS: Any = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
LATER = {
    "train": "Train M+ onto a model; a run that was stopped goes on with --resume.",
    "evaluate": "Measure what is remembered: write contexts, then distractors, and ask after more and more of them.",
    "serve": "Serve the model and its memories to many users: OpenAI's API, an API of memories, and MCP.",
    "mcp": "Give an agent a memory by the Model Context Protocol: remember, recall, ask, forget, list.",
    "keys": "Make, list and revoke the API keys of mplus serve --keys. A running server sees changes at once.",
}
"""Commands whose options come from pydantic models, which take longer to import than ``mplus --help`` may last, or that
need an extra."""
ELSEWHERE: dict[str, str] = dict.fromkeys(("serve", "mcp", "keys"), "mplus_integrations.server.command")
"""Commands of the other package, which is built on this one: they are imported by name, when they are called."""


class Commands(TyperGroup):
    """The list of commands, in which those of ``LATER`` stand by name until they are called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, imported where it was not."""
        if args and args[0] in LATER:
            self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> None:
        """Put a command of ``LATER`` in the place of its name."""
        alone = typer.Typer(**OPTIONS)
        try:
            module = import_module(ELSEWHERE.get(name, f"mplus.cli.{name}"))
        except ModuleNotFoundError as error:
            if name not in ELSEWHERE:
                raise
            raise ImportError(
                f"mplus {name} needs {error.name!r}, which is not installed: pip install 'mplus-memory[serve,mcp]'"
            ) from error
        alone.command(name, help=LATER[name])(getattr(module, name))
        self.add_command(get_command(alone), name)


app = typer.Typer(
    cls=Commands,
    help="Latent long-term memory for language models.",
    no_args_is_help=True,
    **OPTIONS,
)

for command in (pull, write, ask, chat, inspect, forget, pin, snapshot, rollback, memories, export):
    app.command()(command)
app.command("import")(import_)
for command in (delete, verify, backup, restore, info, convert):
    app.command()(command)
for name, about in LATER.items():
    app.command(name, help=about)(lambda: None)
app.command()(calibrate)


def whole() -> Commands:
    """Every command with its options, for a reference."""
    group = get_command(app)
    assert isinstance(group, Commands)
    for name in LATER:
        group.load(name)
    return group


def main() -> None:
    """Run the command; errors meant for people are one line on standard error."""
    try:
        refuse_other_mplus()
        app(standalone_mode=True)
    except (MPlusError, ValueError, OSError, ImportError) as error:
        print(f"mplus: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
