"""Reading safetensors folders so that no tensor is missed and none is silently left over."""

import re
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mplus.checkpoint.limits import read_settings
from mplus.errors import CheckpointError


class TensorFiles:
    """All tensors of a folder's safetensors files, each to be taken once by name."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's index or its safetensors files.

        Raises:
            CheckpointError: There are none, or one cannot be read.
        """
        self.folder = folder
        self._where = self._index()
        self._taken: set[str] = set()

    def _index(self) -> dict[str, Path]:
        from safetensors import SafetensorError, safe_open

        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map: Any = read_settings(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise CheckpointError(f"{index}: has no weight_map of file names. Fetch it again.")
            names = cast("dict[str, str]", weight_map).values()
            files = sorted({self.folder / Path(name).name for name in names})
        else:
            files = sorted(self.folder.glob("model*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.folder}: no model*.safetensors file. Pickled weights are not loaded.")
        where: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(str(file), framework="pt") as tensors:
                    where.update(dict.fromkeys(tensors.keys(), file))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: cannot be read ({error}). Fetch it again.") from error
        return where

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._get(name).shape)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor, marked as used.

        Raises:
            CheckpointError: It is missing or has another shape.
        """
        tensor = self._get(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{self.folder}: {name!r} has shape {tuple(tensor.shape)}, expected {shape} from config.json. "
                "The weights belong to another config."
            )
        self._taken.add(name)
        return tensor

    def _get(self, name: str) -> Tensor:
        from safetensors import safe_open

        file = self._where.get(name)
        if file is None:
            raise CheckpointError(
                f"{self.folder}: tensor {name!r} is missing; the file holds {len(self._where)} others. "
                "Fetch the checkpoint again."
            )
        with safe_open(str(file), framework="pt") as tensors:
            return tensors.get_tensor(name)

    def finish(self, *, ignore: re.Pattern[str]) -> None:
        """Check that every tensor was used.

        Raises:
            CheckpointError: Some would have been dropped.
        """
        if left := sorted(n for n in self._where if n not in self._taken and not ignore.fullmatch(n)):
            raise CheckpointError(
                f"{self.folder}: {len(left)} tensors would be dropped, first {left[0]!r}. The checkpoint is of "
                "a kind this version does not know."
            )
