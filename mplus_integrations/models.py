"""Models by name, loaded once per process, whatever framework asks for them."""

import threading
from weakref import WeakValueDictionary

from mplus import MPlus

_LOADED: dict[str, MPlus] = {}
_LIVE: WeakValueDictionary[str, MPlus] = WeakValueDictionary()
_LOADING = threading.Lock()


def load(model: str | MPlus) -> MPlus:
    """A model by name, or the one given, which can be found by its fingerprint from now on."""
    if isinstance(model, MPlus):
        _LIVE[model.fingerprint] = model
        return model
    with _LOADING:
        if model not in _LOADED:
            _LOADED[model] = MPlus.from_pretrained(model)
        loaded = _LOADED[model]
    _LIVE[loaded.fingerprint] = loaded
    return loaded


def loaded_already(model: str | MPlus) -> MPlus | None:
    """The model, where that takes no loading."""
    return model if isinstance(model, MPlus) else _LOADED.get(model)


def by_fingerprint(fingerprint: str) -> MPlus | None:
    """A model of this process that has these weights."""
    return _LIVE.get(fingerprint)
