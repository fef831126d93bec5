"""``mplus info``: versions, devices, models and memories; or the settings of one model."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus.checkpoint.catalog import BUILT_IN, DEFAULT_MODEL, cache_root, is_pulled, resolve, trained_parts
from mplus.cli.opened import user_store
from mplus.cli.options import JsonOption
from mplus.cli.terminal import show
from mplus.config import PRESETS

if TYPE_CHECKING:
    from mplus import MemoryConfig


def info(
    model: Annotated[
        str | None, typer.Argument(help="Model whose memory settings to show: built-in name, folder or repository.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, devices, models and memories; or what a model's memories are like."""
    if model is not None:
        _settings(model, as_json=as_json)
        return
    found = _installation()
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:13} {value}")


def _installation() -> dict[str, Any]:
    import platform

    import torch
    import transformers

    import mplus

    return {
        "mplus": mplus.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "cache": str(cache_root()),
        "models": {name: "ready" if is_pulled(name) else "not pulled yet" for name in BUILT_IN},
        "settings": PRESETS[DEFAULT_MODEL]().model_dump(exclude_defaults=True),
        "memories": [stored.name for stored in user_store().list()],
    }


def _settings(model: str, *, as_json: bool) -> None:
    """What the model's memories are like, and which settings are not those of a plain ``MemoryConfig()``."""
    from mplus import MemoryConfig
    from mplus.checkpoint.loading import memory_settings

    config = memory_settings(resolve(model), trained_parts(model))
    if as_json:
        changed = config.model_dump(exclude_defaults=True)
        print(json.dumps({"model": model, "memory": config.model_dump(), "differs_from_defaults": changed}))
        return
    rows = [_row(name, config) for name in MemoryConfig.model_fields]
    show(("setting", "value", "default", "meaning"), rows, title=f"Memory settings of {model}; * is not the default")


def _row(name: str, config: "MemoryConfig") -> tuple[str, str, str, str]:
    field = type(config).model_fields[name]
    value = getattr(config, name)
    meaning = " ".join((field.description or "").split())
    return name, f"{value}{' *' if value != field.default else ''}", str(field.default), meaning
