"""Stored notebooks are complete, free of errors and of traces of the machine they ran on; ``make notebooks`` runs them."""

import ast
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(/root/|/home/|/tmp/|/Users/|/var/folders|[A-Z]:\\\\| at 0x[0-9a-f]{6})")


def read(path: Path):
    return nbformat.read(path, as_version=4)


def shown(output) -> str:
    """What a reader sees of an output, images apart."""
    return output.get("text", "") or "\n".join(
        text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")
    )


def test_there_are_notebooks_for_all_that_the_documentation_names() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "assistant_langgraph",
        "assistant_llama_index",
        "inspecting",
        "rag_swapped",
        "training",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
        if "print(" in cell.source and "def " not in cell.source:
            assert cell.outputs, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_compiles_and_has_assertions(path: Path) -> None:
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    for source in code:
        compile(source, path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert sum(source.count("assert ") for source in code) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_the_machine_is_stored(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        for output in cell.get("outputs", []):
            assert not MACHINE.search(shown(output)), shown(output)
            assert output.get("name") != "stderr"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_and_documents_lead_somewhere(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
