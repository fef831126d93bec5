import random
import re
from dataclasses import replace

import pytest

from mplus.training.talk.format import Message, Slot
from mplus.training.talk.slot_types import TYPES
from mplus.training.talk.slots import as_written, drawn
from mplus.training.talk.values import lists
from tests.training.talk.items import parsed, raw


def test_as_written_fills_in_what_the_writer_wrote():
    item = as_written(parsed(raw()))
    assert item.told[0].text == "Tomas moved to Graz on Friday 7 June, with an alpaca of all things"
    assert item.ask[0].q == "where's tomas now"


def test_drawn_values_are_new_distinct_and_follow_their_rules():
    item = parsed(raw())
    for seed in range(50):
        again = drawn(item, random.Random(seed))
        values = {name: slot.value for name, slot in again.slots.items()}
        assert len(set(values.values())) == len(values)
        assert int(values["AGE2"]) == int(values["AGE1"]) + 3
        assert re.fullmatch(r"£\d+\.\d\d", values["PRICE1"])
        assert len(values["CODE1"].split()) == 4
        assert values["TOWN1"] in again.ask[0].full and again.ask[0].short == (values["TOWN1"],)
        article = re.search(r"with (an?) (\w)", again.told[0].text)
        assert article is not None
        assert (article[1] == "an") == (article[2] in "aeiou")
        assert not any("{" in message.text for message in again.told)


def test_the_same_generator_state_draws_the_same_values():
    item = parsed(raw())
    assert drawn(item, random.Random(3)) == drawn(item, random.Random(3))
    assert drawn(item, random.Random(3)) != drawn(item, random.Random(4))


def test_somebody_who_never_uses_capitals_writes_values_so_too():
    item = replace(parsed(raw()), lowercase=True, told=(Message("user", "at {NAME1}s"), *parsed(raw()).told[1:]))
    written = as_written(item)
    assert written.told[0].text == "at tomass"
    assert written.told[1].text == "How is Tomas settling in?"
    assert written.ask[0].short == ("Graz",)


def test_case_follows_the_written_value_and_the_reference():
    item = replace(
        parsed(raw()),
        told=(Message("user", "{colour1} {Colour1} {NAME1}"),),
        slots={"COLOUR1": Slot("navy", "colour"), "NAME1": Slot("TOMAS", "first name")},
        ask=(),
        unknown=(),
    )
    lower, first, *name = drawn(item, random.Random(0)).told[0].text.split()
    assert lower.islower() and first[0].isupper() and name[-1].isupper()


def test_a_value_brings_no_second_article():
    told = (Message("user", "the {STAR1}, a {BODY1}, the {ILLNESS1}"),)
    slots = {
        "STAR1": Slot("the Pleiades", "star"),
        "BODY1": Slot("elbow", "body part"),
        "ILLNESS1": Slot("a hernia", "illness"),
    }
    item = replace(parsed(raw()), told=told, slots=slots, ask=(), unknown=())
    assert as_written(item).told[0].text == "the Pleiades, an elbow, the hernia"


def test_bounds_hold():
    slots = {
        "DATE1": Slot("3 March", "date"),
        "DATE2": Slot("9 March", "date", "> DATE1; < DATE3"),
        "DATE3": Slot("20 March", "date", "> DATE1"),
        "PRICE1": Slot("£12", "price", "= COUNT1 * 4"),
        "COUNT1": Slot("3", "count"),
    }
    item = replace(parsed(raw()), told=(Message("user", "x"),), slots=slots, ask=(), unknown=())
    for seed in range(20):
        values = {name: slot.value for name, slot in drawn(item, random.Random(seed)).slots.items()}
        read = TYPES["date"].read
        assert read is not None
        days = [found.number for name in ("DATE1", "DATE2", "DATE3") if (found := read(values[name]))]
        assert days == sorted(set(days))
        assert values["PRICE1"] == f"£{int(values['COUNT1']) * 4}"


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (Slot("x", "firstname"), "there is no type 'firstname'; did you mean first name"),
        (Slot("soon", "date"), "'soon' is no date that can be redrawn; write it like 3 March"),
        (Slot("31 February", "date"), "'31 February' is no date"),
        (Slot("3", "count", "AGE1"), 'write "= AGE1 \\+ 3"'),
        (Slot("3", "count", "= AGE9"), "names AGE9, which is no other slot"),
        (Slot("3", "count", "= TOWN1"), "slot TOWN1: 'town' has no order"),
        (Slot("3", "count", "= AGE1 ** 2"), "a rule may hold slot names, numbers"),
    ],
)
def test_a_slot_that_cannot_be_drawn_is_named(slot, message):
    item = parsed(raw())
    with pytest.raises(ValueError, match=message):
        drawn(replace(item, slots={**item.slots, "COUNT1": slot}), random.Random(0))


def test_rules_that_wait_for_each_other_are_named():
    slots = {"AGE1": Slot("3", "age", "= AGE2"), "AGE2": Slot("3", "age", "= AGE1")}
    item = replace(parsed(raw()), told=(Message("user", "x"),), slots=slots, ask=(), unknown=())
    with pytest.raises(ValueError, match="AGE1, AGE2 wait for each other"):
        drawn(item, random.Random(0))


def test_lists_are_generous_and_hold_no_value_twice():
    assert len(lists()["first name"]) > 500
    for name, values in lists().items():
        assert all(value == value.strip() and value for value in values), name
        if not name.startswith("part: "):
            assert len(values) >= 20, name
