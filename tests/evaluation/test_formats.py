"""Every format is recognised by what is in the file."""

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mplus.evaluation.formats import recognised
from tests.evaluation.data import (
    AGENT_BENCH,
    BEAM,
    LOCOMO,
    LONGMEMEVAL,
    filler_file,
    lines_file,
    squad_file,
    talk_file,
    trivia_file,
)

RECORDS: dict[str, dict[str, Any]] = {
    "nq": {"question": "q", "answers": ["a"], "ctxs": [{"text": "t"}]},
    "dialogue": {"id": "d", "turns": [["u", "hi"]], "facts": []},
    "longdoc": {"context": "c", "input": "q", "answers": ["a"]},
    "longmemeval": LONGMEMEVAL[0],
    "memoryagentbench": AGENT_BENCH[0],
    "beam": BEAM,
    "rows": {"source": "s", "text_id": "1", "text": "t", "question": "q", "answers": ["a"], "kind": "k"},
    "common": {"source": "s", "text_id": "", "text": "", "question": "q", "answers": ["a"], "kind": "request"},
    "texts": {"source": "s", "text_id": "1", "text": "t", "question": "title", "answers": [], "kind": "text"},
}


@pytest.mark.parametrize("task", RECORDS)
def test_lines_are_recognised_by_their_fields(task: str, tmp_path: Path) -> None:
    plain = lines_file(tmp_path, "file.jsonl", [RECORDS[task]] * 2)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert recognised(plain) == recognised(packed) == task


def test_whole_files_folders_and_archives(tmp_path: Path) -> None:
    assert recognised(squad_file(tmp_path)) == "squad"
    assert recognised(talk_file(tmp_path)) == "talk"
    assert recognised(trivia_file(tmp_path)) == "common"
    assert recognised(filler_file(tmp_path)) == "texts"
    locomo = tmp_path / "locomo.json"
    locomo.write_text(json.dumps(LOCOMO), encoding="utf-8")
    assert recognised(locomo) == "locomo"
    folder = tmp_path / "en"
    folder.mkdir()
    story = folder / "qa1_single_test.txt"
    story.write_text("1 Mary went home.\n2 Where is Mary?\thome\t1\n", encoding="utf-8")
    with tarfile.open(tmp_path / "en.tar.gz", "w:gz") as archive:
        archive.add(story, "en/qa1_single_test.txt")
    assert {recognised(path) for path in (folder, story, tmp_path / "en.tar.gz")} == {"babi"}
    story.write_text("1 Mary went home.\n2 Where is Mary? |home|1\n", encoding="utf-8")
    assert recognised(story) == "babi"
    story.write_text("1 Opening hours\n2 day | from | to\n", encoding="utf-8")
    assert recognised(story) == "texts"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("x.jsonl", '{"poem": "rose"}\n', "records of poem"),
        ("x.jsonl", "", "no record"),
        ("x.csv", "a,b", "a name that ends in .csv"),
    ],
)
def test_another_format_says_what_was_expected(name: str, content: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: found {found}.*; expected JSON lines of talk.*suite.toml"):
        recognised(path)
