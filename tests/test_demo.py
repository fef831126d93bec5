import importlib.util
from pathlib import Path

import pytest

import mplus


@pytest.mark.default_model
def test_the_demo_answers_most_facts_from_memory_alone(
    default_model: mplus.MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parent.parent / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    # The whole length is `make demo`; an eighth of it is enough to notice that something broke.
    monkeypatch.setattr(demo, "ENOUGH_TOKENS", 2_500)
    assert demo.main() == 0
