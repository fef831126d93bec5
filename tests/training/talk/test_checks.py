import json

import pytest

from mplus.training.talk.__main__ import main
from mplus.training.talk.checks import problems_in, problems_of
from tests.training.talk.items import parsed, raw


def texts_of(fields) -> str:
    return "\n".join(problem.text for problem in problems_in(parsed(fields)) if not problem.is_note)


def question(fields, **changes):
    fields["ask"][0] |= changes
    return fields


def test_a_good_item_has_nothing_to_mend():
    assert texts_of(raw()) == ""


def test_sizes():
    fields = raw()
    fields["ask"] = fields["ask"][:2]
    fields["told"] = fields["told"][:3] + [fields["told"][3]] * 30
    fields["unknown"] = ["what?"]
    assert texts_of(fields).split("\n")[:3] == [
        "found 2; a conversation has 3 to 14",
        "found 33; a conversation has 4 to 30",
        "found 1; write at least 2",
    ]


def test_slots_used_and_declared():
    fields = raw()
    fields["slots"]["TOWN2"] = ["Bergen", "town"]
    fields["unknown"].append("is {NAME2} coming to {NAME}?")
    found = texts_of(fields)
    assert "{NAME2} is used and not declared" in found
    assert "declared and not used" in found
    assert "{NAME} has no number" in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short": ["Vienna"], "full": "In Vienna."}, "does not stand in messages [0]"),
        ({"needs": [2]}, "does not stand in messages [2]"),
        ({"full": "No idea."}, "`full` does not hold short"),
        ({"q": "is {name1} in {town1}"}, "the question says its own answer"),
        ({"kind": "yes/no"}, 'a yes/no question is answered "yes" or "no" first'),
        ({"kind": "yes/no", "short": ["yes"]}, "`full` does not say 'yes'"),
        ({"kind": "list", "short": ["{TOWN1}", "{PRICE1}"], "full": "{TOWN1} and {PRICE1}"}, "(every part must)"),
        ({"kind": "follow-up"}, "do not put it first"),
    ],
)
def test_questions(changes, message):
    assert message in texts_of(question(raw(), **changes))


def test_answers_in_other_words_are_declared():
    changes = {"short": ["Austria"], "full": "In Austria."}
    assert texts_of(question(raw(), **changes, paraphrase=True)) == ""


def test_a_value_typed_where_its_slot_belongs_is_found():
    assert "'Graz' stands outside its slot; write {TOWN1}" in texts_of(question(raw(), short=["Graz"]))
    fields = raw()
    fields["ask"][2] |= {"short": ["34"], "full": "He is 34."}
    assert "with other values in the slots" in texts_of(fields)


def test_written_values_must_keep_their_rules():
    fields = raw()
    fields["slots"]["AGE2"][0] = "35"
    assert "'35' breaks its rule '= AGE1 + 3'" in texts_of(fields)


def test_lowercase_items_have_no_capitals():
    fields = raw() | {"lowercase": True}
    fields["told"][0]["text"] = "My {NAME1} moved to {TOWN1} on {DATE1} with the {ANIMAL1}"
    assert "a message has capitals" in texts_of(fields)


def test_ids_and_near_duplicates_over_the_corpus():
    other = raw()
    other["slots"]["TOWN1"][0] = "Bergen"
    found = "\n".join(problem.text for problem in problems_of([parsed(raw()), parsed(other)]))
    assert "2 items have this id" in found
    assert "near-duplicates (Jaccard 1.00" in found


def test_no_kind_of_question_takes_more_than_a_fifth():
    items = [parsed(raw() | {"id": f"test-{i}"}) for i in range(15)]
    found = [problem.text for problem in problems_of(items)]
    assert "15 of 60 questions are 'where', more than a fifth; ask otherwise" in found


def test_the_command_prints_problems_and_tables(tmp_path, capsys):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(raw()) + "\n\n" + json.dumps(raw() | {"writer": "someone", "id": "a"}) + "\n{\n")
    assert main(["check", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "test.jsonl, line 3, field 'writer': found 'someone'; write 'test'" in printed
    assert "test.jsonl, line 4: found '{'; write valid JSON here" in printed
    assert "distinct 3-grams per 1,000 words" in printed


def test_show_and_types_print(tmp_path, capsys):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(raw()) + "\n")
    assert main(["show", str(file)]) == 0
    assert "Tomas moved to Graz" in capsys.readouterr().out
    assert main(["types"]) == 0
    assert "clothing" in capsys.readouterr().out
