"""The corpus on disk, and which part of it is held out."""

from functools import cache
from pathlib import Path
from typing import Literal

from mplus.training.talk.format import Item, read_items

Split = Literal["train", "dev"]
DATA = Path(__file__).parent / "data"
DEV_WRITERS = frozenset(
    "amber finch hazel heron jade kestrel larch linden marten merlin osprey rowan sage slate teal".split()
)
"""Writers whose items are never trained on. About a tenth; a list, so that a new writer never moves an old one."""
DECLINE_WRITERS = frozenset("amber finch jade larch sage slate teal".split())
"""Held-out writers whose questions the decline head learns from; a read adapter knows those of the others too well."""

PLAIN_WRITERS = frozenset(
    "alder aspen birch briar clover cress dahlia dill elder erica fennel fern finch gorse heron kestrel merlin osprey "
    "sage topaz umber vesper violet willow wren yarrow".split()
)
"""Writers of plain text: short, clear statements as most messages and office documents are made of."""


def writers() -> list[str]:
    """Everybody who wrote a file of the corpus."""
    return sorted(path.stem for path in DATA.glob("*.jsonl"))


def talk_files(split: Split) -> tuple[Path, ...]:
    """The files of one split."""
    return tuple(DATA / f"{writer}.jsonl" for writer in writers() if (writer in DEV_WRITERS) == (split == "dev"))


def decline_files() -> tuple[Path, ...]:
    """The files of `DECLINE_WRITERS`."""
    return tuple(DATA / f"{writer}.jsonl" for writer in sorted(DECLINE_WRITERS))


@cache
def talk_items(split: Split) -> tuple[Item, ...]:
    """The items of one split, with slots in their texts; `drawn` or `as_written` fills them.

    Args:
        split: "train", or "dev": the items of `DEV_WRITERS`.

    Raises:
        TalkFormatError: If a data file does not follow the format.
    """
    return tuple(item for file in talk_files(split) for item in read_items(file))
