"""Opens the model to be measured: any model, or a folder of trained parts and their backbone."""

from pathlib import Path

from mplus.checkpoint import catalog
from mplus.checkpoint.loading import load
from mplus.checkpoint.parts import PARTS_FILE
from mplus.model import MPlus


def open_model(name: str, *, backbone: str = catalog.DEFAULT_MODEL, device: str = "auto", dtype: str = "auto") -> MPlus:
    """A model by built-in name, folder or repository; or trained parts alone, such as training leaves behind.

    Args:
        name: What ``MPlus.from_pretrained`` takes, or a folder with ``mplus.json`` and no backbone.
        backbone: The backbone of a folder of trained parts.
        device: As in ``from_pretrained``.
        dtype: As in ``from_pretrained``.

    Raises:
        ModelNotFoundError: Nothing under that name.
        CheckpointError: Weights are missing, or the parts do not fit the backbone.
    """
    folder = Path(name).expanduser()
    if not (folder / PARTS_FILE).exists() or (folder / "config.json").exists():
        return MPlus.from_pretrained(name, device=device, dtype=dtype)
    loaded = load(catalog.resolve(backbone), device=device, dtype=dtype, attention="auto", trained=folder)
    return MPlus(loaded.weights, loaded.tokenizer, loaded.memory, name=name, parts=loaded.parts)
