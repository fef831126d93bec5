"""Encodes a user's text without ever making control tokens of it."""

import copy
from typing import Any
from weakref import WeakKeyDictionary


def encode_inert(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text; special-token strings inside it are encoded as ordinary characters.

    Otherwise a user could write control tokens, such as the end of a message, into a prompt.
    """
    backend = _INERT.get(tokenizer)
    if backend is None:
        if not tokenizer.is_fast:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        backend = _INERT[tokenizer] = _inert(tokenizer.backend_tokenizer)
    return backend.encode(text, add_special_tokens=False).ids


_INERT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""For each tokenizer, a copy of its backend that encodes special tokens as ordinary characters."""


def _inert(backend: Any) -> Any:
    """A copy of a tokenizer's backend that never makes a control token.

    transformers instead switches a flag of its single backend. With two threads, a user's control tokens could then
    be encoded as control tokens, or a template's as plain characters.
    """
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend
