import json

from mplus.training.talk.__main__ import main
from mplus.training.talk.blind import blind_questions, disagreements
from tests.training.talk.items import parsed, raw


def test_a_second_writer_sees_the_needed_messages_only():
    first, second, *_ = blind_questions([parsed(raw())])
    assert first == {
        "id": "test-1/0",
        "messages": ["user: Tomas moved to Graz on Friday 7 June, with an alpaca of all things"],
        "q": "where's tomas now",
    }
    assert second["before"] == "where's tomas now - Tomas is in Graz."


def test_other_answers_are_named(tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    said = {"test-1/0": "in graz", "test-1/1": "since Friday 7 June", "test-1/2": "31"}
    answers.write_text("\n".join(json.dumps({"id": id, "answer": answer}) for id, answer in said.items()))
    assert [text.split(":")[0] for text in disagreements([parsed(raw())], answers)] == [
        "test-1/2 'how old is his brother'",
        "test-1/3 'code for the door?'",
    ]
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(raw()))
    assert main(["blind", str(file)]) == 0
    assert len(capsys.readouterr().out.strip().split("\n")) == 4
    assert main(["blind", str(file), "--answers", str(answers)]) == 1
    assert "2 of 4 answered otherwise" in capsys.readouterr().out
