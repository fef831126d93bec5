import json

import pytest

from mplus.training.talk.format import TalkFormatError, parse_item
from tests.training.talk.items import parsed, raw


def test_reads_an_item_and_asks_after_the_last_message_unless_told_otherwise():
    item = parsed(raw())
    assert item.told[1].role == "assistant"
    assert item.slots["AGE2"].rule == "= AGE1 + 3"
    assert item.ask[0].after == 3
    assert item.ask[0].needs == (0,)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kind",), "letter", r"test.jsonl, line 1, field 'kind': found 'letter'; write one of: conversation, note"),
        (("told", 0), "hello", r"field 'told\[0\]': found 'hello'; write an object with the fields role, text"),
        (("told", 0, "role"), "system", r"write one of: user, assistant"),
        (("slots", "name1"), ["a", "b"], r"name a slot in capital letters and a number"),
        (("slots", "NAME1"), ["Tomas"], r"write \[value, type\]"),
        (("ask", 0, "needs"), [4], r"field 'ask\[0\].needs': found 4; write the index of a message, 0 to 3"),
        (("ask", 2, "after"), 1, r"name messages up to `after` \(1\), or ask later"),
        (("ask", 0, "kind"), "whose", r"write one of: who, what"),
        (("ask", 0, "short"), [], r"write a list with at least one element"),
        (("ask", 0, "answer"), "x", r"use only after, full, kind"),
        (("unknown",), [" "], r"write a text that is not empty"),
        (("lowercase",), "yes", r"write true or false"),
    ],
)
def test_what_does_not_follow_the_format_is_named_with_its_fix(path, value, message):
    fields = raw()
    *outer, last = path
    inner = fields
    for step in outer:
        inner = inner[step]
    inner[last] = value
    with pytest.raises(TalkFormatError, match=message):
        parsed(fields)


def test_a_missing_field_and_broken_json_are_named():
    fields = raw()
    del fields["unknown"]
    with pytest.raises(TalkFormatError, match="add the missing unknown"):
        parsed(fields)
    with pytest.raises(TalkFormatError, match=r"x.jsonl, line 7: found .*; write valid JSON here"):
        parse_item(json.dumps(raw())[:-1], "x.jsonl", 7)
