"""What the README shows runs, on a tiny model."""

import re
from pathlib import Path

import pytest

import mplus
from mplus.testing import tiny_model
from mplus_integrations import models
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_runs(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(memory=TINY)
    monkeypatch.setattr(mplus.MPlus, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(models, "_LOADED", {})
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_the_code_exist() -> None:
    for module in ROOT.glob("mplus/**/*.py"):
        for target in re.findall(r"docs/\w+\.md", module.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{module.name} names {target}"
