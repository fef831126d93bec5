"""Ways of answering by name: "mplus", "rag-bm25", …, all with the same backbone and the same prompts."""

from collections.abc import Sequence

from mplus.config import MemoryConfig
from mplus.evaluation.answering import Answerer, Settings
from mplus.evaluation.recalling import Recalling
from mplus.evaluation.stream import Stream
from mplus.model import MPlus

MODES = ("mplus", "mplus-late", "mplus-attention", "mplus-published")


def answerer(name: str, model: MPlus, config: MemoryConfig, stream: Stream, settings: Settings) -> Answerer:
    """The way of answering that goes by a name.

    Raises:
        ValueError: An unknown name, or one that these weights cannot do.
    """
    if name not in MODES:
        raise ValueError(f"mode={name!r}: expected one of {', '.join(MODES)}.")
    if name == "mplus":
        return Recalling(name, model, config, stream, settings)
    recall = name.removeprefix("mplus-")
    if recall not in model.weights.scorers:
        raise ValueError(
            f"mode={name!r}: these weights have no such retriever, only {', '.join(sorted(model.weights.scorers))}."
        )
    return Recalling(name, model, config.model_copy(update={"recall": recall}), stream, settings)


def available(model: MPlus, names: Sequence[str]) -> list[str]:
    """Names as given, "all" meaning every way that these weights can do."""
    possible = [n for n in MODES if not n.startswith("mplus-") or n.removeprefix("mplus-") in model.weights.scorers]
    found: list[str] = []
    for name in names:
        found += possible if name == "all" else [name]
    return list(dict.fromkeys(found))
