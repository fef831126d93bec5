"""Loading a model by its name, its folder or its repository."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mplus.backbone.cpu import computes_bfloat16
from mplus.checkpoint import catalog, gguf_model
from mplus.checkpoint.loading import Loaded, load
from mplus.thread_teams import gives_back_team


@gives_back_team
def load_pretrained(
    model: str | Path,
    *,
    device: str | Mapping[str, Any] | None,
    dtype: str | torch.dtype | None,
    attention: str,
    decode_dtype: str | None,
    revision: str | None,
    local_files_only: bool,
    gguf_file: str | None,
    trust_remote_code: bool,
    options: dict[str, Any],
) -> Loaded:
    """Find the files of a model, and load them; takes and raises what ``MPlus.from_pretrained`` does."""
    options = dict(options)
    dtype = _one_dtype(dtype, options)
    if dtype == "auto" and (device == "cpu" or (device in (None, "auto") and not torch.cuda.is_available())):
        dtype = _dtype_on_cpu(str(model))
    place, gguf_file = gguf_model.named(str(model), gguf_file)
    folder = catalog.resolve(
        place,
        revision=revision,
        local_files_only=local_files_only,
        gguf_file=gguf_file,
        with_code=trust_remote_code,
    )
    if trust_remote_code:
        options["trust_remote_code"] = True
    return load(
        folder,
        device="auto" if device is None else device,
        dtype=dtype,
        attention=attention,
        decode_dtype=decode_dtype,
        trained=catalog.trained_parts(str(model)),
        gguf_file=gguf_file,
        **options,
    )


def _dtype_on_cpu(model: str) -> str:
    """In which dtype a CPU has a model of which the user does not say one; "auto" where its name does not decide."""
    known = catalog.BUILT_IN.get(model)
    return "bfloat16" if known is not None and known.dtype == "bfloat16" and computes_bfloat16() else "auto"


def _one_dtype(dtype: str | torch.dtype | None, options: dict[str, Any]) -> str:
    """The name of the dtype. Older code calls it ``torch_dtype``, which is taken out of ``options``."""
    name, other = (str(given or "auto").removeprefix("torch.") for given in (dtype, options.pop("torch_dtype", None)))
    if "auto" not in (name, other) and name != other:
        raise ValueError(f"dtype={name!r} and torch_dtype={other!r}: expected one of them. Leave torch_dtype out.")
    return other if name == "auto" else name
