"""A small item that has nothing to mend, as a starting point for tests."""

import copy
import json
from typing import Any

from mplus.training.talk.format import Item, parse_item

GOOD: dict[str, Any] = {
    "id": "test-1",
    "writer": "test",
    "kind": "conversation",
    "told": [
        {"role": "user", "text": "{NAME1} moved to {TOWN1} on {DATE1}, with an {ANIMAL1} of all things"},
        {"role": "assistant", "text": "How is {NAME1} settling in?"},
        {"role": "user", "text": "fine. {AGE1} now, the brother is {AGE2}. rent {PRICE1}"},
        {"role": "user", "text": "the door code is {CODE1}"},
    ],
    "slots": {
        "NAME1": ["Tomas", "first name"],
        "TOWN1": ["Graz", "town"],
        "DATE1": ["Friday 7 June", "date"],
        "ANIMAL1": ["alpaca", "animal"],
        "AGE1": ["31", "age"],
        "AGE2": ["34", "age", "= AGE1 + 3"],
        "PRICE1": ["£640.50", "price"],
        "CODE1": ["four seven one nine", "code"],
    },
    "ask": [
        {"q": "where's {name1} now", "short": ["{TOWN1}"], "full": "{NAME1} is in {TOWN1}.", "needs": [0], "kind": "where"},
        {"q": "since when?", "short": ["{DATE1}"], "full": "Since {DATE1}.", "needs": [0], "kind": "follow-up"},
        {"q": "how old is his brother", "short": ["{AGE2}"], "full": "He is {AGE2}.", "needs": [2], "kind": "how many"},
        {"q": "code for the door?", "short": ["{CODE1}"], "full": "It is {CODE1}.", "needs": [3], "kind": "code"},
    ],
    "unknown": ["what is his job?", "who owns the flat?"],
}  # fmt: skip


def raw() -> dict[str, Any]:
    """A copy to break."""
    return copy.deepcopy(GOOD)


def parsed(fields: dict[str, Any]) -> Item:
    """The item of some fields, as read from a line."""
    return parse_item(json.dumps(fields), "test.jsonl", 1)
