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


def shows_something(source: str, showing: set[str]) -> bool:
    """Whether running a cell leaves an output.

    Args:
        source: The cell's code.
        showing: Names of functions that print or draw; those that the cell defines are added.
    """
    tree = compile(source, "cell", "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    run: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            showing |= {statement.name} if called_in(statement) & showing else set()
        elif not isinstance(statement, ast.ClassDef):
            run.append(statement)
    is_value = bool(run) and isinstance(run[-1], ast.Expr) and not isinstance(run[-1].value, ast.Call | ast.Await)
    return is_value or any(called_in(statement) & showing for statement in run)


def called_in(statement: ast.stmt) -> set[str]:
    """Last names of what is called: ``show`` for ``plt.show()``."""
    called = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return {ast.unparse(name).rpartition(".")[2] for name in called}


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
    showing = {"print", "show"}
    for cell in code:
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
        if shows_something(cell.source, showing):
            assert cell.outputs, f"{path.name} has no output stored for: {cell.source}"


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
