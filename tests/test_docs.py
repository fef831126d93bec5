"""What README and docs show runs as printed, on a tiny model; commands, files, extras and links they name exist."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import mplus
from mplus import MPlus
from mplus.testing import tiny_model
from mplus_integrations import models
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
PIP_LINES = [*PAGES, *sorted(ROOT.glob("examples/**/*.ipynb")), *sorted(ROOT.glob("examples/**/*.py"))]
LAB = ROOT / "docs" / "lab"
SHOWN = {str(page.relative_to(ROOT)): page for page in PAGES if LAB not in page.parents}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page in one language, each with the number of its first line."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```", text, re.S | re.M)
    return [(text.count("\n", 0, block.start(2)) + 1, _dedented(block[2], len(block[1]))) for block in found]


def _dedented(block: str, width: int) -> str:
    return "".join(line[width:] if line.strip() else line for line in block.splitlines(keepends=True))


WITH_CODE = [name for name, page in SHOWN.items() if blocks(page, "python")]


@pytest.fixture(scope="module")
def reader_model() -> MPlus:
    return tiny_model(memory=TINY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LlamaIndex's agents use what is deprecated
@pytest.mark.parametrize("name", WITH_CODE)
def test_what_a_page_shows_runs(
    name: str, reader_model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = MPlus.from_pretrained

    def from_pretrained(model: str = "smol-135m", **settings: Any) -> MPlus:
        if Path(model).is_dir():
            return loaded(model, **settings)
        if (embedder := settings.get("embedder")) is None:
            return reader_model
        given = settings.get("memory")
        layout = None if given is None else TINY.model_copy(update={"recall": given.recall})
        return reader_model.with_embedder(embedder, memory=layout)

    monkeypatch.setattr(mplus.MPlus, "from_pretrained", from_pretrained)
    monkeypatch.setattr(models, "_LOADED", {})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, block in blocks(SHOWN[name], "python"):
        # Line numbers of a failure are those of the page.
        exec(compile("\n" * (line - 1) + block, str(SHOWN[name]), "exec"), namespace)


def test_the_pages_have_code() -> None:
    assert len(WITH_CODE) >= 12
    assert len(blocks(ROOT / "README.md", "python")) >= 4


# --- commands ---------------------------------------------------------------------------------------------


def _commands(page: Path) -> Iterator[list[str]]:
    for _, block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


COMMANDS = [(name, words) for name, page in SHOWN.items() for words in _commands(page)]


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[f"{n}: {' '.join(w)[:60]}" for n, w in COMMANDS])
def test_a_command_that_a_page_shows_exists(name: str, words: list[str]) -> None:
    checks: dict[str, Callable[[list[str]], None]] = {
        "mplus": _parses,
        "make": _is_a_target,
        "pip": _installs_this_project,
        "python": _is_a_script,
        "accelerate": lambda words: _parses(words[words.index("mplus.cli") :]),
        "MPLUS_RELIABILITY=full": lambda words: None,
        "export": lambda words: None,
        "curl": lambda words: None,
    }
    assert words[0] in checks, f"{name} shows {words[0]}, which this test does not know"
    checks[words[0]](words[1:] if words[0] != "accelerate" else words)


def _parses(words: list[str]) -> None:
    from mplus.cli.app import whole

    for end in ("|", ">"):
        words = words[: words.index(end)] if end in words else words
    words = [word for word in words if word != "mplus.cli"]
    command = whole().commands[words[0]]
    command.make_context(words[0], words[1:])


def _is_a_target(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def _installs_this_project(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "mplus" not in words, "the package mplus is another project"
    for word in words:
        if asked := re.fullmatch(r"([\w.-]+)\[([\w,-]+)\]", word):
            assert asked[1] in (project["name"], "."), f"{word} is not {project['name']}"
            assert set(asked[2].split(",")) <= set(project["optional-dependencies"]), word


@pytest.mark.parametrize("page", PIP_LINES, ids=lambda page: page.name)
def test_pip_lines_in_text_install_this_project(page: Path) -> None:
    for line in re.findall(r"pip install ([^`\n\"\\]*)", page.read_text(encoding="utf-8")):
        _installs_this_project(shlex.split(line, comments=True))


def _is_a_script(words: list[str]) -> None:
    if words[0] == "-m":
        assert (ROOT / f"{words[1].replace('.', '/')}.py").exists()
    elif not words[0].startswith("-"):
        assert (ROOT / words[0]).exists()


# --- links ------------------------------------------------------------------------------------------------


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_the_code_exist() -> None:
    for module in [*ROOT.glob("mplus*/**/*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("tests/**/*.py")]:
        for target in re.findall(r"docs/[\w/-]+\.md", module.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{module.name} names {target}"


def test_files_that_contributing_names_exist() -> None:
    for target in re.findall(r"`(\w+/[\w./-]*)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"CONTRIBUTING.md names {target}"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md"))


def test_names_in_the_reference_exist() -> None:
    for page in ROOT.glob("docs/reference/*.md"):
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.M):
            module, _, attribute = name.rpartition(".")
            assert hasattr(import_module(module), attribute), f"{page.name} describes {name}"


# --- what is generated when the site is built ---------------------------------------------------------------


def test_the_reference_is_generated_from_the_code() -> None:
    from docs import generated

    commands = generated.command_line()
    assert "## mplus ask" in commands
    assert "`--abstain-below`" in commands
    assert "`short_term_tokens` | 512 | **128** | **10240** |" in generated.memory_settings()
    assert "CorruptMemoryError" in generated.errors()


@pytest.mark.parametrize("mark", ["command line", "memory settings", "errors"])
def test_every_mark_stands_on_a_page(mark: str) -> None:
    assert any(f"<!-- generated: {mark} -->" in page.read_text(encoding="utf-8") for page in PAGES)
