"""``mplus restore``: memories out of a backup."""

from typing import Annotated

import typer

from mplus.cli.opened import store_at
from mplus.cli.verify import KeysOption, PassphraseOption, StoreOption, vault_of


def restore(
    source: Annotated[str, typer.Argument(help="Folder or url of the backup.")],
    memories: Annotated[list[str] | None, typer.Argument(help="Names of memories; all if left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace memories that are there.")] = False,
    store: StoreOption = None,
    keys: KeysOption = None,
    passphrase: PassphraseOption = False,
) -> None:
    """Bring memories back from a backup, once every byte of them has been checked."""
    from mplus.memory.backup import Backup
    from mplus.storage.address import folder_of

    kept = store_at(store, vault_of(keys, passphrase=passphrase))
    names = memories or sorted(Backup.read(folder_of(source)).memories)
    for name in names:
        kept.restore(source, name, overwrite=overwrite)
        print(f"Restored {name!r}.")
