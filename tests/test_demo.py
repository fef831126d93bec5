import importlib.util
import shutil
from pathlib import Path

import pytest

import mplus
from mplus_integrations import models

ROOT = Path(__file__).parent.parent
READ = ("CONTRIBUTING.md", "docs/index.md", "docs/how-to/encrypt-memories.md")


@pytest.mark.default_model
def test_the_demo_answers_most_facts_from_memory_alone(
    default_model: mplus.MPlus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    # The whole length is `make demo`; an eighth of it, some 2,500 tokens, is enough to notice that something broke.
    for name in READ:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(demo, "PROJECT", tmp_path)
    monkeypatch.setitem(models._LOADED, "smol-135m", default_model)
    assert demo.main() == 0
