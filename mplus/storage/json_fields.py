"""Dataclasses as JSON and back, checked field by field against their type hints.

Loading runs no code except constructors of the expected dataclasses. A field that a file lacks gets its
default, so files from before the field was added still load.
"""

import base64
import binascii
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.errors import CorruptMemoryError
from mplus.metadata import decoded_metadata, encoded_metadata
from mplus.storage.blocks import CODE_BY_DTYPE, DTYPE_BY_CODE
from mplus.storage.shards import as_bytes

METADATA = "metadata"
"""The field of a dataclass whose values keep their types."""
LATER: Mapping[str, bool] = {"later": True}
"""Metadata of a field of a dataclass that earlier versions do not know: it is left out where it has its default."""
MOST = 2**60
"""Largest number that a field may have; no NaN is below it."""

KeepTensor = Callable[[Tensor], Any]
FindTensor = Callable[[Any], Tensor]


def inline(tensor: Tensor) -> Any:
    """Encode a small tensor within the JSON itself."""
    return {"dtype": CODE_BY_DTYPE[tensor.dtype], "base64": base64.b64encode(as_bytes(tensor)).decode()}


def from_inline(described: Any) -> Tensor:
    """Decode a one-dimensional tensor from JSON."""
    try:
        dtype, data = DTYPE_BY_CODE[described["dtype"]], base64.b64decode(described["base64"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise CorruptMemoryError(f"expected a tensor, found {described!r:.80}") from error
    if len(data) % dtype.itemsize:
        raise CorruptMemoryError(f"{len(data)} bytes are not a whole number of {dtype} values")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


class Record:
    """A dataclass that is a row of a table. It never changes, so its JSON is made once."""

    @computed_once
    def line(self) -> bytes:
        """The record as one line of JSON."""
        return to_json(encode(self)) + b"\n"


def encode(value: Any, keep: KeepTensor = inline) -> Any:
    """Encode a value for JSON. ``keep`` stores a tensor and returns a reference to it."""
    if isinstance(value, Tensor):
        return keep(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encoded_metadata(getattr(value, field.name))
            if field.name == METADATA
            else encode(getattr(value, field.name), keep)
            for field in fields(value)
            if not (field.metadata == LATER and getattr(value, field.name) == field.default)
        }
    if isinstance(value, Mapping):
        return {str(key): encode(item, keep) for key, item in typing.cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (frozenset, set)):
        return sorted(encode(item, keep) for item in typing.cast("frozenset[Any]", value))
    if isinstance(value, (tuple, list)):
        return [encode(item, keep) for item in typing.cast("tuple[Any, ...]", value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def decode(hint: Any, value: Any, find: FindTensor = from_inline) -> Any:
    """Decode a value of the type ``hint``.

    Raises:
        CorruptMemoryError: The value is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (only,) = (argument for argument in arguments if argument is not type(None))
        return decode(only, value, find)
    if origin is tuple and isinstance(value, list):
        items = typing.cast("list[Any]", value)
        if arguments[1:] == (...,):
            return tuple(decode(arguments[0], item, find) for item in items)
        if len(arguments) == len(items):
            return tuple(decode(a, item, find) for a, item in zip(arguments, items, strict=True))
    if origin is frozenset and isinstance(value, list):
        return frozenset(decode(arguments[0], item, find) for item in typing.cast("list[Any]", value))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return typing.cast("dict[str, Any]", value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST:
        return float(value)
    if hint in (int, str, bool) and type(value) is hint and (type(value) is not int or abs(value) <= MOST):
        return value
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return decode_fields(hint, typing.cast("dict[str, Any]", value), find)
    if getattr(hint, "array_type", hint) is Tensor:
        return find(value)
    raise CorruptMemoryError(f"expected {getattr(hint, '__name__', hint)}, found {value!r:.80}")


def decode_fields(kind: type[Any], value: Mapping[str, Any], find: FindTensor = from_inline) -> Any:
    """Decode a dataclass from its fields; missing fields get their defaults.

    Raises:
        CorruptMemoryError: A field is unknown, of another type, or missing without a default.
    """
    hints = _hints(kind)
    known = {field.name: field for field in fields(kind)}
    unknown = value.keys() - known.keys()
    if unknown:
        name = sorted(unknown)[0]
        raise CorruptMemoryError(f"{kind.__name__} has no field {name!r:.80}; update mplus-memory to read it")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise CorruptMemoryError(f"{kind.__name__} lacks {name!r}")
    decoded = {name: decode(hints[name], item, find) for name, item in value.items()}
    if METADATA in decoded:
        try:
            decoded[METADATA] = decoded_metadata(decoded[METADATA])
        except (ValueError, RecursionError) as error:
            raise CorruptMemoryError(str(error)) from error
    return kind(**decoded)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def to_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def from_json(text: bytes, *, only_finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        only_finite: Refuse NaN and infinite numbers, which a user's metadata may have and settings may not.

    Raises:
        CorruptMemoryError: The text is not valid JSON.
    """
    checked: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _finite} if only_finite else {}
    try:
        return json.loads(text.decode("utf-8", "surrogatepass"), **checked)
    except (ValueError, RecursionError) as error:
        raise CorruptMemoryError(f"not readable as JSON ({error})") from error


def _refuse(number: str) -> Any:
    raise ValueError(f"{number}, expected a finite number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)
