"""Long steps tell how far they are: to a callback, or as a bar that is asked for."""

import json
import sys
from pathlib import Path

import pytest

import mplus
from mplus.checkpoint import catalog
from mplus.progress import Bars, followed, followed_by_stage, is_watched
from mplus.testing import tiny_model
from mplus.training.run_folder import Log

TEXT = "The cat sat on the mat. " * 40


@pytest.mark.parametrize("progress", [None, False])
def test_no_bar_is_shown_by_default(progress: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.write(model.new_memory(), TEXT, progress=progress)
    model.write_batch([model.new_memory()], [TEXT], progress=progress)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_true_shows_a_bar_that_ends_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    report = model.write(model.new_memory(), TEXT, progress=True)
    model.write_batch([model.new_memory()], [TEXT], progress=True)
    err = capsys.readouterr().err
    assert err.count("writing: 100%") >= 2
    assert f"{report.text_tokens}/{report.text_tokens}" in err


def test_a_callback_receives_the_progress() -> None:
    model, told = tiny_model(), list[tuple[int, int]]()
    report = model.write(model.new_memory(), TEXT, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (report.text_tokens, report.text_tokens)
    assert told == sorted(told)


def test_forgetting_with_a_rebuild_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    memory = model.new_memory()
    for name in ("first", "second"):
        model.write(memory, TEXT, source=name)
    memory.forget("first", rebuild=model, progress=True)
    assert "writing again: 100%" in capsys.readouterr().err


def test_stages_have_a_bar_each(capsys: pytest.CaptureFixture[str]) -> None:
    with followed_by_stage(True, "B") as told:
        assert told is not None
        for stage in ("download", "verify"):
            told(stage, 0, 10)
            told(stage, 10, 10)
    err = capsys.readouterr().err
    assert "download: 100%" in err
    assert "verify: 100%" in err


def test_a_bar_is_closed_when_a_step_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), followed(True, "writing", "tok") as told:
        assert told is not None
        told(3, 10)
        raise RuntimeError
    err = capsys.readouterr().err
    assert "30%" in err
    assert err.endswith("\n")


def test_a_total_that_grows_is_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars("tok") as bars:
        bars("writing", 5, 5)
        bars("writing", 8, 8)
    assert "8.00/8.00" in capsys.readouterr().err


def test_pull_shows_a_bar_for_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fetch(model: object, work: Path, told: catalog.StageProgress, local_files_only: bool) -> None:
        (work / "model").mkdir()
        told("download", 7, 7)
        told("convert", 2, 2)

    monkeypatch.setenv("MPLUS_HOME", str(tmp_path))
    monkeypatch.setattr(catalog, "_fetch", fetch)
    mplus.pull("smol-135m", progress=True)
    err = capsys.readouterr().err
    assert "download: 100%" in err
    assert "convert: 100%" in err


def test_training_logs_lines_and_a_bar_only_where_somebody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train() -> str:
        log = Log(tmp_path / "log.jsonl")
        with log.progress("reader", 2, 4) as advance:
            for step in (3, 4):
                advance()
                log.write("reader", step, {"loss": 1.0})
        return capsys.readouterr().err

    assert not is_watched()
    unwatched = train()
    assert unwatched.splitlines() == ["reader step 3: loss 1", "reader step 4: loss 1"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    watched = train()
    assert "reader: 100%" in watched
    assert "reader step 4: loss 1" in watched
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3, 4, 3, 4]


def test_memorizing_and_a_vector_store_show_a_bar_where_they_are_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core")
    from mplus_integrations.langchain import MPlusChat, MPlusVectorStore

    chat = MPlusChat(model=tiny_model())
    chat.memorize(["One thing.", "Another thing."])
    MPlusVectorStore.from_texts(["A third thing."], chat=chat)
    assert capsys.readouterr().err == ""

    chat.memorize(TEXT, show_progress=True)
    assert "tok" in capsys.readouterr().err
    chat.memorize(["One thing.", "Another thing."], show_progress=True)  # written in one go
    assert "tok" in capsys.readouterr().err
    store = MPlusVectorStore.from_texts(["A third thing."], chat=chat, show_progress=True)
    assert "100%" in capsys.readouterr().err
    store.add_texts(["A fourth thing."], show_progress=True)
    assert "100%" in capsys.readouterr().err


def test_an_index_of_llama_index_shows_a_bar_where_it_is_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    core = pytest.importorskip("llama_index.core")
    from mplus_integrations.llama_index import MPlusIndex, MPlusLLM

    documents = [core.Document(text="The key is under the pot.", id_="note")]
    MPlusIndex.from_documents(documents, llm=MPlusLLM(model=tiny_model()), show_progress=True)
    assert "writing: 100%" in capsys.readouterr().err
