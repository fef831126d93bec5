"""The examples run, on the default model, with small sizes."""

import difflib
import runpy
import sys
from pathlib import Path

import pytest

import mplus
from mplus_integrations import models

pytestmark = pytest.mark.timeout(900)  # seconds where the machine is free, minutes where it is not

EXAMPLES = Path(__file__).parents[3] / "examples" / "langchain"


def test_acceptance_7_a_rag_script_changes_by_two_lines() -> None:
    before, after = ((EXAMPLES / name).read_text().splitlines() for name in ("rag_before.py", "rag_after.py"))
    changed = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if line[:3] not in ("---", "+++")]
    assert [line[0] for line in changed if line[0] in "-+"] == ["-", "+", "-", "+"]
    assert sum("import" in line for line in changed) == 2 and sum("from_documents" in line for line in changed) == 2


@pytest.fixture
def run(default_model: mplus.MPlus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run an example as its users do, on the model that is loaded already; returns what it prints."""
    monkeypatch.setitem(models._LOADED, "smol-135m", default_model)
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code: object = None
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr().out
        assert not code, printed
        return printed

    return call


@pytest.mark.default_model
@pytest.mark.parametrize("name", ["rag_before.py", "rag_after.py"])
def test_acceptance_7_the_rag_script_answers_before_and_after(run, name: str) -> None:
    printed = run(name, "--pages", 6, "--questions", 2)
    assert printed.count("Where was the") == 2 and ("1 of 2 right" in printed or "2 of 2 right" in printed)


@pytest.mark.default_model
def test_the_personal_assistant_remembers_across_a_restart(run, tmp_path: Path) -> None:
    printed = run("personal_assistant.py", "--days", 2, "--folder", tmp_path)
    assert "2 of 2 right" in printed
    assert [memory.name for memory in mplus.MemoryStore(tmp_path).list()] == ["me"]


@pytest.mark.default_model
def test_the_agent_calls_tools_and_separates_its_users(run) -> None:
    printed = run("agent.py")
    assert "The library is open from nine to five." in printed and "Order 4711 is on its way." in printed


@pytest.mark.default_model
def test_rag_and_memory_are_drawn_side_by_side(run, tmp_path: Path) -> None:
    printed = run("side_by_side.py", "--pages", 4, "--questions", 2, "--plot", tmp_path / "plot.png")
    assert printed.count("RAG ") == 1 and printed.count("M+ ") == 1
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
