"""Decoder-only text types of the installed transformers: memory is exact with them, or they are refused with the reason.

``docs/reference/models.md`` has the table; its rows are the cases here.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from mplus.backbone.own_layers import OwnLayers
from mplus.checkpoint import trial
from mplus.errors import UnsupportedModelError
from tests.backbone.tiny_models import tiny_of

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
EXACT = 2e-3


class Row(NamedTuple):
    kind: str
    outcome: str
    says: str


def rows() -> list[Row]:
    table = PAGE.read_text(encoding="utf-8").split("\n## Types\n")[1]
    cells = [re.findall(r"[^|]+", line) for line in table.splitlines() if line[:3] == "| `"]
    return [Row(kind.strip(" `"), outcome.strip(), says.strip()) for kind, outcome, says, *_ in cells]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.kind)
def test_memory_is_exact_or_the_model_is_refused_with_the_reason(row: Row) -> None:
    model = tiny_of(row.kind)
    if row.outcome == "refused":
        with pytest.raises(UnsupportedModelError, match=re.escape(row.kind)) as refusal:
            trial.tried(model, 257)
        assert row.says in str(refusal.value)
        return
    backbone, found = trial.tried(model, 257)
    assert (found.way, found.kind) == (row.outcome, row.says)
    assert found.empty < EXACT
    assert found.chunk < EXACT
    assert isinstance(backbone, OwnLayers) == (found.way == "own")


def test_memory_works_with_at_least_45_types() -> None:
    assert sum(row.outcome != "refused" for row in rows()) >= 45
