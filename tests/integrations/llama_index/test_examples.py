"""The examples run, offline, on the default model."""

import difflib
import runpy
from pathlib import Path

import pytest

import mplus
from mplus_integrations import models

pytestmark = pytest.mark.timeout(900)  # seconds where the machine is free, minutes where it is not

EXAMPLES = Path(__file__).parent.parent.parent.parent / "examples" / "llama_index"


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_index.core import Settings

    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's agents use what is deprecated
@pytest.mark.default_model
@pytest.mark.parametrize("name", ["assistant", "rag_before", "rag_after", "citations"])
def test_an_example_runs(
    name: str, default_model: mplus.MPlus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "_LOADED", {"smol-135m": default_model})
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert example["main"]() == 0, capsys.readouterr().out


def test_the_swap_is_two_lines() -> None:
    before, after = (
        (EXAMPLES / name).read_text(encoding="utf-8").split('"""')[2].splitlines()
        for name in ("rag_before.py", "rag_after.py")
    )
    changed = [line for line in difflib.ndiff(before, after) if line[0] in "-+"]
    assert sum(line[0] == "-" for line in changed) == sum(line[0] == "+" for line in changed) == 2, changed
