"""``mplus backup``: all memories of a store, copied while they are in use."""

from typing import Annotated

import typer

from mplus.cli.opened import store_at
from mplus.cli.verify import KeysOption, PassphraseOption, StoreOption, vault_of


def backup(
    target: Annotated[str, typer.Argument(help="Folder or url to copy to, without a backup in it.")],
    store: StoreOption = None,
    keys: KeysOption = None,
    passphrase: PassphraseOption = False,
) -> None:
    """Copy all memories, each whole and checked, while they are in use. Keys are not copied."""
    names = store_at(store, vault_of(keys, passphrase=passphrase)).backup(target)
    print(f"Copied {len(names)} memories to {target}.")
