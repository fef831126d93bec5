"""What a model folder may hold: checked before anything of it is built, since it may come from anyone.

Files are regular files, settings are finite numbers of a sane size, and the model that they describe is one that the
weight files can hold.
"""

import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mplus.errors import CheckpointError

MAX_SETTINGS_BYTES = 2**24
MAX_LAYERS = 2**11
LIMITS = {
    "num_hidden_layers": MAX_LAYERS,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**12,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**30,
}
OTHER_NAMES = (
    (re.compile(r"(.*_)?(n_?)?layers?|depth"), MAX_LAYERS),
    (re.compile(r"(num|n)_(.*_)?experts?"), 2**14),
    (re.compile(r"(num|n)_(.*_)?heads?"), 2**12),
)
"""Most of what other families call by other names; it is made one by one, so that a large number takes for ever."""
MOST = 2**53
"""Most of any other whole number."""
MAX_DEPTH = 16
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
COMPUTED_POSITIONS = re.compile(r"rope|rotary|alibi|partial_rotary")
POSITIVE = ("rope_theta", "rms_norm_eps")
LEAST_BITS = 1
"""Bits of a weight in the most tightly quantised checkpoint."""


def check_files(folder: Path) -> None:
    """Check that a model folder has only files and folders in it; a pipe or device could be read for ever.

    Raises:
        CheckpointError: Something else is in it.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        check_file(path)


def check_file(path: Path) -> None:
    """Check that a path is a file or folder, if it is there.

    Raises:
        CheckpointError: It is something else, or a link that leads nowhere.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return
        raise CheckpointError(f"{path}: a link that leads nowhere ({error.strerror}). Fetch it again.") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: a pipe, socket or device; expected a file. Remove it.")


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of settings: an object, whose numbers are finite.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: It is no regular file, too large, or not such JSON.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path}: a pipe, socket or device; expected a file. Remove it.")
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        raise CheckpointError(
            f"{path}: {path.stat().st_size:,} bytes of settings; at most {MAX_SETTINGS_BYTES:,} are read."
        )
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: {found!r:.40}; expected a JSON object.")
    return cast("dict[str, Any]", found)


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Check the sizes in a config.json before anything of these sizes is built, the config of transformers included.

    Args:
        path: The file, for messages.
        config: Its content.

    Raises:
        CheckpointError: A size is not a whole number or out of bounds.
    """
    _check_sizes(path, config, 0)


def check_weights(path: Path, config: Mapping[str, Any], weight_bytes: int) -> None:
    """Check that weight files can hold the model that a config describes by the names of Llama.

    Args:
        path: The config, for messages.
        config: What it says; other families' names have been translated.
        weight_bytes: Bytes of all weight files; 0 if they are not there yet.

    Raises:
        CheckpointError: They are far too small.
    """
    described = num_weights(config)
    if weight_bytes and described * LEAST_BITS > 8 * weight_bytes:
        raise CheckpointError(
            f"{path}: describes a model of {described:,} weights ({config.get('num_hidden_layers')} layers), but the "
            f"weight files have {weight_bytes:,} bytes. They belong to another config, or were cut."
        )


def _check_sizes(path: Path, config: Mapping[Any, Any], depth: int) -> None:
    """Check every number of a config, also of the configs in it, such as ``text_config``."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{path}: configs in configs, more than {MAX_DEPTH} deep. Fetch it again.")
    for name, given in config.items():
        if isinstance(given, Mapping):
            _check_sizes(path, cast("Mapping[Any, Any]", given), depth + 1)
            continue
        if not isinstance(name, str):  # such as the numbers of labels
            continue
        most = _most(name)
        values = cast("list[Any]", given) if isinstance(given, list) and given else [given]  # or one for each layer
        for value in values:
            if name in LIMITS and value is not None and (type(value) is not int or not 0 < value <= most):
                raise CheckpointError(f"{path}: {name}={given!r:.40}; expected a whole number from 1 to {most:,}.")
            if type(value) is int and abs(value) > most:
                raise CheckpointError(f"{path}: {name}={given!r:.40}; expected a whole number up to {most:,}.")
        is_positive = isinstance(given, int | float) and not isinstance(given, bool) and given > 0
        if name in POSITIVE and given is not None and not is_positive:
            raise CheckpointError(f"{path}: {name}={given!r:.40}; expected a number above 0.")


def _most(name: str) -> int:
    """The most that a whole number of that name may be."""
    if name in LIMITS:
        return LIMITS[name]
    return next((most for pattern, most in OTHER_NAMES if pattern.fullmatch(name)), MOST)


def num_weights(config: Mapping[str, Any]) -> int:
    """At least how many weights a model with this config has; 0 if the config lacks sizes."""
    layers, hidden, inner, vocabulary = (
        size if type(size) is int else 0
        for size in map(config.get, ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"))
    )
    # Positions that are computed take no weights, nor does a table of them.
    is_computed = any(COMPUTED_POSITIONS.search(name) for name in config)
    positions = 0 if is_computed else max((n for n in map(config.get, POSITIONS) if type(n) is int), default=0)
    return (vocabulary + positions) * hidden + layers * hidden * max(hidden, 3 * inner) if hidden else 0


def _refuse(number: str) -> Any:
    raise ValueError(f"{number}, expected a finite number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)
