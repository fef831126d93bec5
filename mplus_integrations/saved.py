"""Objects with memories as JSON: a store by its place, and what JSON cannot hold as a note that it is missing.

An object that is made of such JSON never reads another memory than the one that was saved: what is missing is given
again, or it is an error.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, field_serializer, model_validator

from mplus import MemoryStore
from mplus_integrations.store_place import StorePlace

NOT_SAVED = "mplus_not_saved"
"""Key of what stands in JSON for something that it cannot hold; the value is its type."""
INSTEAD_OF_MEMORY = "memory=…"


def not_saved(what: object) -> dict[str, str]:
    """What stands in JSON for something that it cannot hold."""
    return {NOT_SAVED: type(what).__name__}


def is_not_saved(given: object) -> bool:
    """Whether something was not saved, and stands for what is missing."""
    return isinstance(given, Mapping) and NOT_SAVED in given


class SavedByName(BaseModel):
    """Base class of objects with a ``store``, whose JSON has the store's folder, url and limits."""

    @field_serializer("store", check_fields=False)
    def _by_place(self, store: MemoryStore | None) -> dict[str, Any] | None:
        return None if store is None else StorePlace.of(store).model_dump(exclude_defaults=True)

    @field_serializer("memory", "embedder", check_fields=False)
    def _as_missing(self, given: Any) -> dict[str, str] | None:
        return None if given is None else not_saved(given)

    @field_serializer("shared", check_fields=False)
    def _by_name(self, shared: Any) -> Any:
        several = [shared] if isinstance(shared, str) else shared
        if several is None or (isinstance(several, list | tuple) and all(isinstance(one, str) for one in several)):
            return shared
        return not_saved(shared)

    @model_validator(mode="before")
    @classmethod
    def _of_json(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):  # an object that has been validated already
            return given
        found = dict(given)
        if any(found.get(name) is not None and not is_not_saved(found[name]) for name in ("memory", "store")):
            found = {name: value for name, value in found.items() if name != "own" or not is_not_saved(value)}
        missing = [name for name, value in found.items() if is_not_saved(value)]
        if missing:
            again = [INSTEAD_OF_MEMORY if name in ("own", "memory") else f"{name}=…" for name in missing]
            what = ["what it remembered without a store" if name == "own" else f"{name}=" for name in missing]
            raise ValueError(
                f"This {cls.__name__} was saved without {' and '.join(what)}, which JSON does not hold. Give it again, "
                f"as in {cls.__name__}.from_json(text, {', '.join(dict.fromkeys(again))})."
            )
        if isinstance(found.get("store"), Mapping):
            found["store"] = StorePlace(**found["store"]).opened()
        return found
