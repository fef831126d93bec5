"""What other programs export is read with its original times, and written once however often it is imported."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mplus.cli.brought import READERS, read_export
from mplus.cli.export import text_lines, write_lines
from mplus.cli.import_ import bring
from mplus.testing import tiny_model
from tests.conftest import TINY

CHATGPT: Any = [
    {
        "conversation_id": "c1",
        "title": "Dogs",
        "current_node": "n3",
        "mapping": {
            "root": {"message": None, "parent": None},
            "n0": {
                "parent": "root",
                "message": {
                    "id": "m0",
                    "author": {"role": "system"},
                    "content": {"content_type": "text", "parts": ["Be kind."]},
                },
            },
            "n1": {
                "parent": "n0",
                "message": {
                    "id": "m1",
                    "author": {"role": "user"},
                    "create_time": 1700000000.5,
                    "content": {"content_type": "text", "parts": ["My dog is called Biscuit."]},
                },
            },
            "n2": {
                "parent": "n1",
                "message": {
                    "id": "m2",
                    "author": {"role": "assistant"},
                    "content": {"content_type": "text", "parts": ["Edited away."]},
                },
            },
            "n3": {
                "parent": "n1",
                "message": {
                    "id": "m3",
                    "author": {"role": "assistant"},
                    "create_time": 1700000060,
                    "content": {"content_type": "text", "parts": ["A fine name."]},
                },
            },
        },
    }
]
CLAUDE: Any = [
    {
        "uuid": "c1",
        "name": "Dogs",
        "chat_messages": [
            {
                "uuid": "m1",
                "sender": "human",
                "text": "My dog is called Biscuit.",
                "content": [],
                "created_at": "2023-11-14T22:13:20Z",
            },
            {
                "uuid": "m3",
                "sender": "assistant",
                "content": [{"type": "text", "text": "A fine name."}],
                "created_at": "2023-11-14T23:14:20+01:00",
            },
        ],
    }
]
OPENWEBUI: Any = [
    {
        "id": "c1",
        "title": "Dogs",
        "chat": {
            "history": {
                "currentId": "m3",
                "messages": {
                    "m1": {
                        "id": "m1",
                        "parentId": None,
                        "role": "user",
                        "content": "My dog is called Biscuit.",
                        "timestamp": 1700000000,
                    },
                    "m3": {
                        "id": "m3",
                        "parentId": "m1",
                        "role": "assistant",
                        "content": "A fine name.",
                        "timestamp": 1700000060,
                    },
                },
            }
        },
    }
]
MEM0: Any = {
    "results": [{"id": "a", "memory": "Has a dog.", "created_at": "2023-11-14T22:13:20Z", "metadata": {"by": "me"}}]
}


@pytest.mark.parametrize(("origin", "exported"), [("chatgpt", CHATGPT), ("claude", CLAUDE), ("openwebui", OPENWEBUI)])
def test_conversations_are_read_with_their_times_and_only_what_is_shown(
    origin: Any, exported: Any, tmp_path: Path
) -> None:
    (tmp_path / "file.json").write_text(json.dumps(exported))
    said = read_export(tmp_path / "file.json", origin)
    assert [one.text for one in said] == ["User: My dog is called Biscuit.", "Assistant: A fine name."]
    assert [one.source for one in said] == [f"{origin}-m1", f"{origin}-m3"]
    assert said[0].metadata == {
        "from": origin,
        "conversation": "c1",
        "title": "Dogs",
        "role": "user",
        "time": "2023-11-14T22:13:20+00:00",
    }
    assert said[1].metadata["time"] == "2023-11-14T22:14:20+00:00"
    assert [one.at for one in said] == [1700000000.5 if origin == "chatgpt" else 1700000000, 1700000060]


def test_a_zip_file_is_read_and_memories_of_mem0_and_lines_of_json(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("conversations.json", json.dumps(CHATGPT))
    assert len(read_export(tmp_path / "export.zip", "chatgpt")) == 2
    (tmp_path / "mem0.json").write_text(json.dumps(MEM0))
    (one,) = read_export(tmp_path / "mem0.json", "mem0")
    about = {"by": "me", "from": "mem0", "time": "2023-11-14T22:13:20+00:00"}
    assert one == ("Has a dog.", "mem0-a", about, 1700000000.0)
    lines = [{"text": "Plums.", "time": 5}, {"role": "user", "content": "Pears.", "source": "p"}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pears, plums = read_export(tmp_path / "lines.jsonl", "jsonl")
    assert (pears.text, pears.source) == ("User: Pears.", "p") and plums.metadata == {
        "time": "1970-01-01T00:00:05+00:00"
    }


def test_a_zip_file_that_unpacks_without_end_or_is_damaged_is_an_error_that_names_it(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", b" " * 2**25)
    with pytest.raises(ValueError, match=r"bomb\.zip.*33,554,432 bytes"):
        read_export(bomb, "chatgpt")
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(damaged, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps(CHATGPT))
    data = bytearray(damaged.read_bytes())
    data[60:90] = b"\xff" * 30
    damaged.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.zip"):
        read_export(damaged, "chatgpt")


@pytest.mark.parametrize("origin", [name for name in READERS])
def test_another_file_is_an_error_that_names_it(origin: Any, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('[{"other": 1}]')
    with pytest.raises(ValueError, match=f"file.json is not an export of {origin}"):
        read_export(tmp_path / "file.json", origin)


def test_what_is_imported_twice_is_written_once_and_what_changed_is_replaced(tmp_path: Path) -> None:
    model, file = tiny_model(memory=TINY, num_hidden_layers=1), tmp_path / "claude.json"
    memory = model.new_memory()
    file.write_text(json.dumps(CLAUDE))
    assert bring(model, memory, read_export(file, "claude")) == (2, 0)
    before = memory.fingerprint
    assert bring(model, memory, read_export(file, "claude")) == (0, 0) and memory.fingerprint == before
    file.write_text(json.dumps(CLAUDE).replace("Biscuit", "Waffle"))
    assert bring(model, memory, read_export(file, "claude")) == (0, 1)
    model.write(memory, "A text that was not kept.", source="other")
    (tmp_path / "texts.jsonl").write_text("\n".join(text_lines(memory)))
    again = model.new_memory()
    assert bring(model, again, read_export(tmp_path / "texts.jsonl", "jsonl")) == (2, 0)
    texts = {source.name: source.texts for source in again.sources()}
    assert texts["claude-m1"] == ("User: My dog is called Waffle.",)
    assert {s.name: s.metadata for s in again.sources()}["claude-m1"]["time"] == "2023-11-14T22:13:20+00:00"


def test_what_is_imported_is_read_as_of_its_own_time(tmp_path: Path) -> None:
    model, file = tiny_model(memory=TINY, num_hidden_layers=1), tmp_path / "claude.json"
    file.write_text(json.dumps(CLAUDE))
    memory = model.new_memory()
    bring(model, memory, read_export(file, "claude"), dated=True)
    assert [s.latest for s in memory.sources()] == [1700000000, 1700000060]
    assert [s.name for s in memory.as_of("2023-11-14T22:14:00Z").sources()] == ["claude-m1"]
    ids = (memory.state.ledger or ())[0].texts[0].input_ids
    assert model.tokenizer.decode(ids) == "On 14 November 2023: User: My dog is called Biscuit."
    before = memory.fingerprint
    assert bring(model, memory, read_export(file, "claude"), dated=True) == (0, 0) and memory.fingerprint == before
    (tmp_path / "texts.jsonl").write_text("\n".join(text_lines(memory)))
    again = model.new_memory()
    bring(model, again, read_export(tmp_path / "texts.jsonl", "jsonl"))
    assert [(s.name, s.latest) for s in again.sources()] == [(s.name, s.latest) for s in memory.sources()]
    assert bring(model, memory, read_export(tmp_path / "texts.jsonl", "jsonl")) == (0, 0)


def test_texts_of_a_source_that_was_written_in_parts_come_back_as_one(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY, num_hidden_layers=1)
    memory, file = model.new_memory(), tmp_path / "texts.jsonl"
    for day in ("2024-01-01", "2024-01-02"):
        model.write(memory, f"It is {day}.", source="diary", at=day, keep_text=True)
    file.write_text("\n".join(text_lines(memory)))
    (one,) = read_export(file, "jsonl")
    assert (one.text, one.at) == ("It is 2024-01-01.\nIt is 2024-01-02.", memory.sources()[0].latest)
    assert bring(model, memory, [one]) == (0, 0)


def test_words_beside_a_picture_or_spoken_are_brought_too(tmp_path: Path) -> None:
    talk = json.loads(json.dumps(CHATGPT))
    said = talk[0]["mapping"]["n1"]["message"]["content"]
    spoken = {"content_type": "audio_transcription", "text": "He is three."}
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file://1"}
    said.update(content_type="multimodal_text", parts=[picture, "My dog is called Biscuit.", spoken])
    (tmp_path / "file.json").write_text(json.dumps(talk))
    first, _ = read_export(tmp_path / "file.json", "chatgpt")
    assert first.text == "User: My dog is called Biscuit.\nHe is three."


def test_texts_with_any_character_are_exported_and_come_back(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY, num_hidden_layers=1)
    memory, again = model.new_memory(), model.new_memory()
    text = "One line\u2028another\x85\x0cand\r\na third."
    model.write(memory, text, source="caf\udce9.txt", keep_text=True)
    write_lines(tmp_path / "texts.jsonl", text_lines(memory))
    bring(model, again, read_export(tmp_path / "texts.jsonl", "jsonl"))
    assert [(one.name, one.texts) for one in again.sources()] == [("caf\udce9.txt", (text,))]


def test_an_export_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced, real, file = list[Path](), os.fsync, tmp_path / "texts.jsonl"

    def fsync(handle: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_lines(file, ["1"])
    assert len(forced) == 2 and forced[1] == tmp_path, "the file, and its name"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        write_lines(file, ["2"])
    assert file.read_text() == "1\n" and list(tmp_path.iterdir()) == [file]


def test_an_export_may_go_to_a_pipe_or_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there.jsonl")
    write_lines(tmp_path / "link", ["1"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there.jsonl").read_text() == "1\n"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_lines(tmp_path / "pipe", ["2"])
    assert os.read(reader, 9) == b"2\n"
    os.close(reader)


def test_a_time_that_is_none_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "Plums.", "time": "last week"}')
    with pytest.raises(ValueError, match=r"lines.jsonl is not an export of jsonl: ValueError: time='last week'"):
        read_export(tmp_path / "lines.jsonl", "jsonl")
