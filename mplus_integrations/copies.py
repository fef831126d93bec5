"""Copies and pickles of objects that refer to weights and memories.

A copy refers to the same ones. A pickle names them: weights by the model's name, a store by its folder. A memory that
has no name goes with the pickle as it is.
"""

import copy
import pickle
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mplus import Memory, MPlus
from mplus_integrations.models import by_fingerprint, load

REFERRED = frozenset({"model", "embedder", "memory", "store", "shared", "llm", "own"})
"""Fields that refer to something: copies refer to the same."""
OF_THE_PROCESS = frozenset({"scheduler", "callback_manager", "callbacks", "rate_limiter", "cache"})
"""Fields that belong to a process: copies have them too, and pickles only if they can be pickled."""


@dataclass(frozen=True)
class NamedModel:
    """A loaded model in a pickle."""

    name: str
    fingerprint: str

    @classmethod
    def of(cls, model: MPlus) -> Self:
        """The name of a model, and the fingerprint by which it is found where it is loaded already."""
        return cls(model.name, load(model).fingerprint)  # this process finds it from then on

    def found(self) -> str | MPlus:
        """The model if this process has it, else its name."""
        return by_fingerprint(self.fingerprint) or self.name


@dataclass(frozen=True)
class PackedMemory:
    """A memory in a pickle, as it was then."""

    content: bytes

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """All that a memory holds, as its portable file."""
        with tempfile.TemporaryDirectory(prefix="mplus-") as folder:
            memory.export(file := Path(folder) / "packed.mplus")
            return cls(file.read_bytes())

    def opened(self, model: MPlus) -> Memory:
        """The memory, for the model that wrote it.

        Raises:
            MemoryMismatchError: Another model wrote it.
        """
        folder = tempfile.TemporaryDirectory(prefix="mplus-")
        file = Path(folder.name) / "packed.mplus"
        file.write_bytes(self.content)
        memory = Memory.load(file, model)
        weakref.finalize(memory, folder.cleanup)  # long-term memory is read from the file
        return memory


class Referring(BaseModel):
    """Base class of objects that refer to weights and memories: they can be copied and pickled.

    A field that cannot be pickled is a ``ValueError``; the living object is never changed.
    """

    _not_pickled: ClassVar[frozenset[str]] = frozenset()
    """Private attributes that an unpickled object makes anew."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with settings of its own, which refers to the same weights, memories and stores."""
        memo = {} if memo is None else memo
        found = self.__copy__()
        memo[id(self)] = found
        for name, value in self.__dict__.items():
            if name not in REFERRED | OF_THE_PROCESS:
                vars(found)[name] = copy.deepcopy(value, memo)
        return found

    def __getstate__(self) -> dict[Any, Any]:
        """The state in a new dictionary, so that nothing here can change the living object."""
        state = BaseModel.__getstate__(self)
        private = state["__pydantic_private__"] or {}
        return {
            **state,
            "__dict__": self._picklable(state["__dict__"]),
            "__pydantic_private__": self._picklable(
                {name: value for name, value in private.items() if name not in self._not_pickled}
            ),
        }

    def __setstate__(self, state: dict[Any, Any]) -> None:
        fields = {name: v.found() if isinstance(v, NamedModel) else v for name, v in state["__dict__"].items()}
        if isinstance(packed := fields.get("memory"), PackedMemory):
            fields["memory"] = packed.opened(load(fields["model"]))
        missing = type(self).model_fields.keys() - fields.keys()
        for name in missing:
            fields[name] = type(self).model_fields[name].get_default(call_default_factory=True, validated_data=fields)
        made = {
            name: attribute.default
            if attribute.default_factory is None
            else cast("Callable[[], Any]", attribute.default_factory)()
            for name, attribute in type(self).__private_attributes__.items()
        }
        private = {
            **{name: value for name, value in made.items() if value is not PydanticUndefined},
            **{n: v.found() if isinstance(v, NamedModel) else v for n, v in state["__pydantic_private__"].items()},
        }
        BaseModel.__setstate__(self, {**state, "__dict__": fields, "__pydantic_private__": private})

    def _picklable(self, values: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            kept = value
            if isinstance(value, MPlus):
                kept = NamedModel.of(value)
            elif isinstance(value, Memory):
                kept = PackedMemory.of(value)
            try:
                pickle.dumps(kept)
            except Exception as error:
                if name in OF_THE_PROCESS:
                    continue
                raise ValueError(
                    f"{type(self).__name__} with {name}={type(value).__name__}(…) cannot be pickled ({error}). Make it "
                    "anew in the other process, or leave it out."
                ) from error
            found[name] = kept
        return found
