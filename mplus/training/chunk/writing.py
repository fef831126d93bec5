"""From which layer on a run's read adapter writes, too, and what a bank of texts keeps for it."""

from mplus.training.run_settings import RunSettings
from mplus.weights import Weights

READING = {"reader", "tune"}
"""Stages that learn to read chunks."""


def trained_to_write_from(settings: RunSettings, weights: Weights) -> int | None:
    """First decoder layer that is trained to write through the read adapter, too; None: none.

    Raises:
        ValueError: The model has no such layer, or recall looks at the states of a later one.
    """
    backbone = weights.backbone
    first = backbone.write_from if settings.write_from is None else settings.write_from
    if first is None:
        return None
    scored = backbone.decoder_layer(recall_layer_of(settings, weights))
    most = len(backbone.decoder_layers) - 1
    if not scored <= first <= most:
        raise ValueError(
            f"write_from={first}: recall scores the states at decoder layer {scored}, which must stay as they are; "
            f"expected {scored} to {most}."
        )
    return first


def recall_layer_of(settings: RunSettings, weights: Weights) -> int:
    """The memory layer whose states recall scores."""
    return weights.recall_layer if settings.layer is None else settings.layer


def kept_layer(settings: RunSettings, weights: Weights) -> int | None:
    """The one layer whose states a bank keeps, encoded no further than that; None: all of them.

    No stage but these reads whole chunks, and where the adapter writes, chunks are encoded in every step: recall alone
    reads the bank.
    """
    stages = set(settings.stages)
    reads = "scorer" in stages or (READING & stages and trained_to_write_from(settings, weights) is None)
    return None if reads else recall_layer_of(settings, weights)
