import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import mplus.cli.app as app_module
from mplus import CheckpointError, MemoryConfig, MPlus
from mplus.cli.app import app, main
from mplus.self_check import HowRead
from mplus.testing import tiny_model
from tests.conftest import TINY

RUN = CliRunner()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MPLUS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    tiny_model(memory=TINY).save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def invoke(*arguments: str, text: str | None = None) -> str:
    result = RUN.invoke(app, list(arguments), input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_write_ask_inspect_forget(folder: str, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The key is under the third flowerpot by the door. " * 9)
    out = invoke("write", "-m", folder, "--memory", "me", "--file", str(note), "--json")
    assert json.loads(out)[0]["text_tokens"] == 450
    assert "Wrote 29 tokens" in invoke(
        "write", "-m", folder, "--memory", "me", "My dog is called Biscuit, ok?", "--source", "dog"
    )
    invoke("write", "-m", folder, "--memory", "me", "--source", "piped", text="This came from a pipe, it did.")
    answer = json.loads(
        invoke("ask", "-m", folder, "--memory", "me", "Where is the key?", "--max-tokens", "5", "--json")
    )
    assert answer["completion_tokens"] <= 5
    assert sum(r["share"] for r in answer["recalled"]) == pytest.approx(1)
    assert "recalled:" in invoke("ask", "-m", folder, "--memory", "me", "Where is the key?", "--max-tokens", "5")
    held = json.loads(invoke("inspect", "-m", folder, "--memory", "me", "--json"))
    assert [s["name"] for s in held["sources"]] == ["note.txt", "dog", "piped"]
    assert "short_term" in invoke("inspect", "-m", folder, "--memory", "me")
    assert "29 memory tokens" in invoke("forget", "-m", folder, "--memory", "me", "dog")
    held = json.loads(invoke("inspect", "-m", folder, "--memory", "me", "--json"))
    assert [s["name"] for s in held["sources"]] == ["note.txt", "piped"]


@pytest.mark.parametrize("command", ["write", "ask", "chat", "import", "forget"])
def test_a_model_runs_where_and_in_what_it_is_told(
    folder: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said, piped = ([], "Hello there.\n/quit\n") if command == "chat" else (["Hello there."], None)
    options = ["-m", folder, "--device", "cpu", "--dtype", "bfloat16"]
    if command == "forget":
        invoke("write", *said, *options, "--source", said[0])
    elif command == "import":
        said = [str(tmp_path / "said.jsonl"), "--from", "jsonl"]
        (tmp_path / "said.jsonl").write_text('{"text": "Hello there.", "source": "a"}\n', encoding="utf-8")
    loaded, load = list[MPlus](), MPlus.from_pretrained
    monkeypatch.setattr(MPlus, "from_pretrained", lambda *a, **kw: loaded.append(load(*a, **kw)) or loaded[-1])
    invoke(command, *said, *options, *(["--max-tokens", "2"] if command in ("ask", "chat") else []), text=piped)
    assert [(one.weights.backbone.dtype, str(one.weights.backbone.device)) for one in loaded] == [
        (torch.bfloat16, "cpu")
    ]
    result = RUN.invoke(app, [command, *said, "-m", folder, "--dtype", "bf61"], input=piped)
    assert isinstance(result.exception, ValueError) and "bf61" in str(result.exception)


def test_history_pins_and_forgetting_without_a_trace(folder: str) -> None:
    chosen = ("-m", folder, "--memory", "me")
    invoke("write", *chosen, "The first note that is kept.", "--source", "first")
    first = invoke("snapshot", *chosen, "before the second").strip()
    invoke("write", *chosen, "The second note, which goes again.", "--source", "second")
    invoke("pin", *chosen, "first")
    out = invoke("inspect", *chosen)
    assert "first (pinned)" in out and "before the second" in out and first in out
    out = invoke("rollback", *chosen, first)
    assert "Sources gone: second; back again: none" in out
    undo = out.split()[-1]
    invoke("rollback", *chosen, undo)
    assert "34 memory tokens" in invoke("forget", *chosen, "second", "--rebuild")
    held = json.loads(invoke("inspect", *chosen, "--json"))
    assert [s["name"] for s in held["sources"]] == ["first"]
    assert held["sources"][0]["tokens"] == {"short_term": 28, "pending": 0, "long_term": 0}
    assert len(held["snapshots"]) == 3 and held["keeps_ledger"]
    assert "no longer pinned" in invoke("pin", *chosen, "first", "--remove")


def test_asking_may_be_answered_with_not_knowing(folder: str) -> None:
    invoke("write", "-m", folder, "The key is under the third flowerpot by the door.")
    out = invoke("ask", "-m", folder, "Where is the key?", "--max-tokens", "4", "--abstain-below", "1", "--json")
    answer = json.loads(out)
    assert answer["text"] == "I don't know." and answer["abstained"]
    assert answer["confidence"] < 1 and answer["evidence"]["min_log_probability"] < 0


def test_the_gate_may_be_overruled(folder: str) -> None:
    invoke("write", "-m", folder, "The key is under the third flowerpot by the door.")
    for gate, used in (("always", True), ("never", False)):
        out = invoke("ask", "-m", folder, "Where?", "--max-tokens", "2", "--gate", gate, "--json")
        assert json.loads(out)["used_memory"] is used
        out = invoke("chat", "-m", folder, "--max-tokens", "2", "--gate", gate, text="Where is it?\n/quit\n")
        assert ("(not from memory)" in out, "(recalled:" in out) == (not used, used)
    held = invoke("inspect", "-m", folder)
    for command in (["ask", "-m", folder, "Where?"], ["chat", "-m", folder]):
        result = RUN.invoke(app, [*command, "--decline-threshold", "2"], input="Where?\n")
        assert isinstance(result.exception, ValueError) and "decline_threshold" in str(result.exception)
    assert invoke("inspect", "-m", folder) == held, "nothing was said"


def test_a_memory_may_be_a_folder(folder: str, tmp_path: Path) -> None:
    invoke("write", "-m", folder, "--memory", str(tmp_path / "mine"), "A note that is long enough.")
    assert (tmp_path / "mine" / "memory.json").exists()


def test_chat_remembers_after_it_ended(folder: str) -> None:
    lines = "My dog is called Biscuit.\nWhat is my dog called?\n/remember The code is 4711, keep it.\n/sources\n/help\n/quit\n"
    out = invoke("chat", "-m", folder, "--max-tokens", "4", text=lines)
    assert "m+:" in out and "noted" in out and "/forget" in out
    out = invoke("chat", "-m", folder, "--max-tokens", "4", text="/sources\n")
    assert "tokens. User: My dog is called Biscuit." in out and "tokens. User: What is my dog called?" in out
    assert "tokens. The code is 4711, keep it." in out and out.count("Assistant: ") >= 1
    held = json.loads(invoke("inspect", "-m", folder, "--json"))
    assert held["stats"]["text_tokens"] > 40


def test_chat_reads_its_turns_from_memory_but_for_those_in_the_prompt(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], list[str]]] = []
    real = MPlus.stream

    def stream(self: MPlus, memory: Any, prompt: Any, **options: Any) -> Any:
        where = options["where"] or (lambda name, metadata: True)
        read = [" ".join(s.texts) for s in memory.sources() if where(s.name, s.metadata)]
        asked.append(([message["content"] for message in prompt], read))
        return real(self, memory, prompt, **options)

    monkeypatch.setattr(MPlus, "stream", stream)
    lines = "I live in Graz.\nMy dog is called Biscuit.\nWhere do I live?\n"
    for turns in ("0", "1"):
        invoke("chat", "-m", folder, "--memory", f"m{turns}", "--max-tokens", "4", "--prompt-turns", turns, text=lines)
    (_, _, (alone, everything), _, _, (two, rest)) = asked
    assert alone == ["Where do I live?"] and len(everything) == 4 and everything[0] == "User: I live in Graz."
    assert two[1:] == alone and len(two) == 2 and len(rest) == 3


def test_convert_and_info(folder: str, tmp_path: Path) -> None:
    invoke("convert", folder, str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "mplus.json").exists()
    info = json.loads(invoke("info", "--json"))
    assert set(info["models"]) == {"smol-135m", "gemma3-270m", "qwen-0.5b", "qwen-1.5b"} and "torch" in info
    assert "cache" in invoke("info")


def test_info_of_a_model_shows_its_memory_settings(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(invoke("info", folder, "--json"))
    assert told["memory"] == TINY.model_dump() and told["differs_from_defaults"] == TINY.model_dump(
        exclude_defaults=True
    )
    shown = invoke("info", folder)
    assert f"{TINY.short_term_tokens} *" in shown and "Capacity of short-term memory" in shown and "[f0]" in shown
    assert told["reads"] in shown and "no read adapter" in told["reads"]
    monkeypatch.setattr("mplus.self_check.kept_of", lambda name: HowRead.measured(4, 9))
    assert "as text, because: no read adapter; of 12 facts" in invoke("info", folder)
    Path(folder, "mplus.json").unlink()
    usual = MemoryConfig.for_window(json.loads(Path(folder, "config.json").read_text())["max_position_embeddings"])
    assert json.loads(invoke("info", folder, "--json"))["memory"] == usual.model_dump()
    Path(folder, "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json"):
        invoke("info", folder)


def test_each_command_is_the_file_of_its_name() -> None:
    folder = Path(app_module.__file__ or "").parent
    for command in set(get_command(app).commands) - set(app_module.ELSEWHERE):
        assert (folder / f"{command}.py").exists() or (folder / f"{command}_.py").exists()


def test_a_command_is_listed_with_its_docstring() -> None:
    for name, about in app_module.LATER.items():
        module = app_module.ELSEWHERE.get(name, f"mplus.cli.{name}")
        assert import_module(module).__dict__[name].__doc__ == about


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "-m", "no-such-model", "hi"], "no-such-model"),
        (["pull", "smol-9t"], "smol-9t"),
        (["ask", "hi", "--memory", "a b"], "Memory name"),
    ],
)
def test_errors_are_one_line(
    folder: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["mplus", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("mplus: ")


def test_a_url_is_exported_to_and_imported_from_and_no_folder_of_memories(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("write", "-m", folder, "--memory", "me", "My dog is called Biscuit, ok?", "--source", "dog")
    assert "Wrote 'me' to memory://exports/me.mplus" in invoke(
        "export", "memory://exports/me.mplus", "-m", folder, "--memory", "me"
    )
    assert "Imported 'copy'" in invoke("import", "memory://exports/me.mplus", "-m", folder, "--memory", "copy")
    for command in (
        ("export", "s3://bucket/me.jsonl", "-m", folder, "--memory", "me", "--text"),
        ("write", "-m", folder, "--memory", "s3://bucket/me", "A text."),
        ("convert", folder, "s3://bucket/model"),
        ("serve", "-m", folder, "--memories", "s3://bucket/memories"),
        ("serve", "-m", folder, "--vault", "s3://bucket/keys"),
        ("keys", "add", "me", "--file", "s3://bucket/keys.json"),
    ):
        refused = RUN.invoke(app, list(command))
        assert refused.exit_code != 0 and "not a url" in str(refused.exception or refused.output), command
    assert not [path.name for path in tmp_path.iterdir() if "s3" in path.name]


def test_export_import_list_and_delete(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "me.mplus"
    invoke("write", "-m", folder, "--memory", "me", "My dog is called Biscuit, ok?", "--source", "dog")
    assert "Wrote 'me'" in invoke("export", str(file), "-m", folder, "--memory", "me")
    assert "Imported 'copy'" in invoke("import", str(file), "-m", folder, "--memory", "copy")
    listed = json.loads(invoke("memories", "--json"))
    assert [memory["name"] for memory in listed] == ["copy", "me"]
    assert all(memory["nbytes"] > 1000 and memory["saved"] > 0 for memory in listed)
    assert "copy" in invoke("memories")
    shown = json.loads(invoke("inspect", "-m", folder, "--memory", "copy", "--json"))
    assert [source["name"] for source in shown["sources"]] == ["dog"]
    invoke("delete", "copy", "--yes")
    assert RUN.invoke(app, ["delete", "me"], input="n\n").exit_code != 0
    assert [memory["name"] for memory in json.loads(invoke("memories", "--json"))] == ["me"]


def test_names_that_a_memory_does_not_have_are_refused_and_change_nothing(folder: str) -> None:
    chosen = ("-m", folder, "--memory", "me")
    invoke("write", *chosen, "The first note that is kept.", "--source", "first")
    taken = invoke("snapshot", *chosen, "the first state").strip()
    for words in (("rollback", *chosen, "nosuch"), ("rollback", *chosen, "nosuch")):
        with pytest.raises(ValueError, match=rf"'{taken}' \(the first state\)\.$"):
            invoke(*words)
    with pytest.raises(ValueError, match=r"source='nosuch': memory 'me' has no such source; it has: \['first'\]"):
        invoke("forget", *chosen, "nosuch")
    assert "1 source;" in invoke("write", *chosen, "More of it, and enough to be written.", "--source", "first")
    invoke("forget", *chosen, "first")
    assert json.loads(invoke("inspect", *chosen, "--json"))["stats"]["text_tokens"] == 0
