"""Text as token ids in which nothing is a control token, whatever a user wrote."""

import copy
from typing import Any
from weakref import WeakKeyDictionary


def encode_inert(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text; special-token strings inside it are encoded as ordinary characters.

    Control tokens in what users write must never reach the model as control tokens.
    """
    backend = _INERT.get(tokenizer)
    if backend is None:
        if not tokenizer.is_fast:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        backend = _INERT[tokenizer] = _inert(tokenizer.backend_tokenizer)
    return backend.encode(text, add_special_tokens=False).ids


_INERT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""By tokenizer, its backend with special tokens as ordinary characters."""


def _inert(backend: Any) -> Any:
    """A copy that never encodes a control token.

    transformers switches the one backend back and forth instead: of two threads, one would encode a user's control
    tokens as such and the other a template's as characters.
    """
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend
