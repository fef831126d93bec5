"""Models by name, loaded once per process for both frameworks."""

from weakref import WeakValueDictionary

from mplus import MPlus
from mplus.forks import ProcessLock

_LOADED: dict[str, MPlus] = {}
_LIVE: WeakValueDictionary[str, MPlus] = WeakValueDictionary()
_LOADING = ProcessLock()


def load(model: str | MPlus) -> MPlus:
    """Load a model by name, or return the given one. From then on ``by_fingerprint`` finds it."""
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
    """The model if it is already loaded, else None."""
    return model if isinstance(model, MPlus) else _LOADED.get(model)


def by_fingerprint(fingerprint: str) -> MPlus | None:
    """A loaded model with these weights, else None."""
    return _LIVE.get(fingerprint)
