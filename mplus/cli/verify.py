"""``mplus verify``: every byte of saved memories, read and checked."""

from typing import TYPE_CHECKING, Annotated

import typer

from mplus.cli.opened import store_at

if TYPE_CHECKING:
    from mplus import KeyVault

StoreOption = Annotated[str | None, typer.Option("--store", help="Folder of a store; yours if left out.")]
KeysOption = Annotated[str | None, typer.Option("--keys", help="Folder of the vault that has the memories' keys.")]
PassphraseOption = Annotated[bool, typer.Option("--passphrase", help="Ask for the vault's passphrase.")]


def vault_of(keys: str | None, *, passphrase: bool) -> "KeyVault | None":
    """The vault that a command is given; asks for its passphrase if it has one."""
    from mplus import KeyVault

    if keys is None:
        return None
    if not passphrase:
        return KeyVault(keys)
    return KeyVault.with_passphrase(keys, typer.prompt("Passphrase", hide_input=True))


def verify(
    memory: Annotated[str | None, typer.Argument(help="Name of a memory, a file or a url; all if left out.")] = None,
    store: StoreOption = None,
    keys: KeysOption = None,
    passphrase: PassphraseOption = False,
) -> None:
    """Read saved memories whole and check every byte; fails if one is damaged."""
    from mplus.memory.backup import damage
    from mplus.storage.address import place_of

    if memory is not None and ("/" in memory or memory.endswith(".mplus")):
        found = {memory: damage(place_of(memory), None)}
    else:
        kept = store_at(store, vault_of(keys, passphrase=passphrase))
        names = [memory] if memory is not None else [one.name for one in kept.list()]
        found = {name: kept.verify(name) for name in names}
    for name, problem in found.items():
        print(f"{name}: {'whole' if problem is None else problem}")
    if any(problem is not None for problem in found.values()):
        raise typer.Exit(1)
