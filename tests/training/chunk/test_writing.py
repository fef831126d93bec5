"""What a bank of texts keeps of them, by what a run trains."""

from pathlib import Path

import pytest

from mplus import MPlus
from mplus.training.chunk.writing import kept_layer
from mplus.training.run_settings import RunSettings


@pytest.mark.parametrize(
    ("stages", "write_from", "keeps_one"),
    [
        (("projection", "gate"), None, True),
        (("projection", "reader"), None, False),
        (("projection", "reader"), 1, True),
        (("tune",), None, False),
        (("projection", "scorer"), 1, False),
    ],
)
def test_what_only_recall_reads_is_encoded_as_far_as_recall_looks(
    model: MPlus, stages: tuple[str, ...], write_from: int | None, keeps_one: bool
) -> None:
    settings = RunSettings(
        squad=Path("squad.json"), talk=1, broad=(Path("rows"),), stages=stages, write_from=write_from, layer=1
    )
    assert kept_layer(settings, model.weights) == (1 if keeps_one else None)
