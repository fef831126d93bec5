"""``mplus evaluate`` end to end, on a tiny model saved to disk."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mplus.cli.app import app
from mplus.evaluation.opening import open_model
from mplus.model import MPlus
from mplus.training.talk.corpus import DEV_WRITERS
from tests.evaluation.data import LONGMEMEVAL, filler_file, squad_file, talk_file, trivia_file
from tests.evaluation.run_folders import run_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: MPlus) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def common(folder: Path, tmp_path: Path) -> list[Any]:
    return ["--model", folder, "--distractors", filler_file(tmp_path), "--levels", "0,400", "--max-new-tokens", 2]


def test_squad_from_a_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["squad", "--data", squad_file(tmp_path), "--questions", 3, "--unanswerable", 1, "--out", out]
    result = evaluate(*arguments, *common(folder, tmp_path))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 * 4
    assert {row["level"] for row in rows} == {0, 400}
    assert "400" in result.output and str(out) in result.output.replace("\n", "")
    assert "| mplus | 400 |" in (out / "table.md").read_text(encoding="utf-8")
    again = evaluate(*arguments, *common(folder, tmp_path), "--json")
    figures = json.loads(again.stdout)
    assert [line["level"] for line in figures] == [0, 400]
    assert len((out / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == len(rows)


def test_sessions_are_scored_without_a_judge(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "longmemeval_oracle.json"
    path.write_text(json.dumps(LONGMEMEVAL), encoding="utf-8")
    asked = ["longmemeval", path, "--model", folder, "--questions", 3, "--unanswerable", 1, "--max-new-tokens", 2]
    result = evaluate(*asked, "--mode", "mplus,rag-bm25", "--top", 1, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    mplus, bm25 = json.loads(result.stdout)
    for figures in (mplus, bm25):
        assert figures["questions"] == 3 and set(figures["found"]) == {"1", "3", "10"}
        assert figures["found"]["10"]["mean"] == 1.0  # three sessions each, of its own history alone
        assert set(figures["by_kind"]) == {"single-session-user", "temporal-reasoning"}
    assert bm25["found"]["1"]["mean"] > 0


def test_costly_ways_of_answering_are_asked_fewer_questions(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["squad", "--data", squad_file(tmp_path), "--questions", 3, "--out", out, *common(folder, tmp_path)]
    arguments += ["--mode", "closed-book,rag-bm25,mplus", "--top", "1,2", "--at-most", "closed-book=1, rag-bm25=2"]
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = Counter(row["mode"] for row in rows if row["level"] == 400)
    assert asked == {"closed-book": 1, "rag-bm25 top-1": 2, "rag-bm25 top-2": 2, "mplus": 3}


def test_facts_need_no_file(folder: Path, tmp_path: Path) -> None:
    result = evaluate("facts", "--questions", 3, *common(folder, tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2 * (3 + 1)


def test_talk_asks_our_own_conversations_where_no_file_is_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--model", folder, "--max-new-tokens", 2, "--out", out, "--questions", 5, "--unanswerable", 2]
    result = evaluate("talk", *arguments)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["mode"] for row in rows} == {"mplus", "chat"} and Counter(row["mode"] for row in rows)["mplus"] == 7
    assert {row["cluster"].split("-")[0] for row in rows} <= DEV_WRITERS
    assert evaluate("talk", *arguments).exit_code == 0
    assert len((out / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == len(rows)


def test_talk_from_a_file_with_common_questions(folder: Path, tmp_path: Path) -> None:
    arguments = [talk_file(tmp_path), "--common", trivia_file(tmp_path), "--common-questions", 2]
    result = evaluate("talk", *arguments, *common(folder, tmp_path), "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert {(line["group"], line["level"]) for line in figures["groups"]} == {
        (group, level) for group in ("conversation", "note", "document") for level in (0, 400)
    }
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| trivia | empty-memory | 0 | 2 |" in table and "| conversation | chat | 400 |" in table


def test_perplexity_of_a_text_file(folder: Path, tmp_path: Path) -> None:
    arguments = ["perplexity", "--data", filler_file(tmp_path), "--questions", 4, "--model", folder]
    arguments += ["--levels", "0,400", "--out", tmp_path / "out", "--json"]
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(f["name"], f["level"]) for f in found] == [("backbone", 0), ("empty memory", 0), ("memory", 400)]
    assert found[1]["ratio"]["mean"] == pytest.approx(1, abs=1e-4)
    before = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8")
    assert json.loads(evaluate(*arguments).stdout) == found
    assert (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8") == before


def test_calibrate_on_a_run(folder: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "train", 0)
    for name in ("mplus.json", "mplus.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    arguments = ["calibrate", str(run), "--check", str(run_folder(tmp_path / "dev", 1)), "--into", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "Recommended: abstain_below=0." in result.output and "Fitted on 580 answers" in result.output
    more = run_folder(tmp_path / "more", 2)
    both = CliRunner().invoke(app, ["calibrate", str(run), str(more)])
    assert both.exit_code == 0 and "Fitted on 1,160 answers" in both.output
    (more / "run.json").write_text(json.dumps({"layout": {"recall": "published"}}), encoding="utf-8")
    other = CliRunner().invoke(app, ["calibrate", str(run), str(more)])
    assert other.exit_code and "late, published; expected one scorer" in str(other.exception)
    out = tmp_path / "out"
    arguments = ["facts", "--questions", 3, "--levels", "0", "--max-new-tokens", 2, "--out", out]
    result = evaluate(*arguments, "--model", tmp_path, "--backbone", folder, "--abstain-below", 1)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["declined"] and row["text"] == "I don't know." for row in rows)
    assert all(0 < row["features"]["confidence"] < 1 for row in rows)


def test_a_folder_of_trained_parts_is_opened_on_its_backbone(folder: Path, tmp_path: Path, model: MPlus) -> None:
    for name in ("mplus.json", "mplus.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    opened = open_model(str(tmp_path), backbone=str(folder))
    assert opened.weights.fingerprints == open_model(str(folder)).weights.fingerprints
    assert opened.memory_config == model.memory_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["squad"], "pass --data FILE"),
        (["squad", "--data", "nowhere.json"], "no such file"),
        (["facts", "--data", "x.json"], "generated"),
        (["squad", "x.json", "--data", "y.json"], "expected one file"),
        (["talk", "nowhere.jsonl"], "no such file"),
        (["poems", "--data", "x.json"], "expected one of facts, squad"),
        (["facts", "--levels", "0,many"], "whole numbers"),
        (["facts", "--levels", "0,-5"], "none of them negative"),
        (["facts", "--levels", "0", "--mode", "magic"], "some of closed-book"),
        (["facts", "--levels", "0", "--set", "recalled_tokens"], "name=value"),
        (["facts", "--levels", "0", "--at-most", "mplus"], "name=value"),
        (["facts", "--levels", "0", "--at-most", "mplus=few"], "whole number"),
        (["facts", "--levels", "0", "--at-most", "magic=3"], "expected one of closed-book"),
        (["facts", "--levels", "0", "--set", "recalled=5"], "recalled"),
        (["facts", "--levels", "5000"], "--distractors"),
        (["facts", "--levels", "0", "--mode", "rag-bm25", "--top", "0"], "at least 1"),
        (["perplexity"], "pass --data FILE"),
        (["facts", "--prompt", "rhyme"], "plain, short or completion"),
    ],
)
def test_impossible_settings_raise_an_explanation(
    arguments: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    result = evaluate(*arguments, "--questions", 3, "--model", folder, "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()
