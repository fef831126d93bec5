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
    from mplus.checkpoint.parts import adapter_reads, has_read_adapter

    folder, trained = resolve(model), trained_parts(model)
    config = memory_settings(folder, trained)
    parts = trained or folder
    reads = _reads(model, config, has_adapter=has_read_adapter(parts), adapted=adapter_reads(parts))
    if as_json:
        changed = config.model_dump(exclude_defaults=True)
        print(
            json.dumps(
                {"model": model, "memory": config.model_dump(), "differs_from_defaults": changed, "reads": reads}
            )
        )
        return
    rows = [_row(name, config) for name in MemoryConfig.model_fields]
    show(("setting", "value", "default", "meaning"), rows, title=f"Memory settings of {model}; * is not the default")
    print(f"Memory is read: {reads}")


def _reads(model: str, config: "MemoryConfig", *, has_adapter: bool, adapted: str) -> str:
    """How a model reads memory and why, as far as it is known without loading it."""
    from mplus.self_check import kept_of

    if config.read != "auto":
        return f'as {config.read}, because of read="{config.read}"'
    if not config.has_texts:
        return "as latents, because text needs the chunk layout and a ledger"
    if has_adapter and adapted == "text":
        return "as text, because the model has a read adapter that was trained on text"
    if has_adapter:
        return "as latents, because the model has a trained read adapter"
    found = kept_of(model)
    if found is None:
        return "as latents or as text; a check decides when a memory is first read, because there is no read adapter"
    return f"as {'text' if found.read == 'text' else 'latents'}, because: {found.reason}"


def _row(name: str, config: "MemoryConfig") -> tuple[str, str, str, str]:
    field = type(config).model_fields[name]
    value = getattr(config, name)
    meaning = " ".join((field.description or "").split())
    return name, f"{value}{' *' if value != field.default else ''}", str(field.default), meaning
