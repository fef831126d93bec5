from dataclasses import replace

from mplus.training.talk.format import Message
from mplus.training.talk.variety import distinct_trigrams, near_duplicates, shingles
from tests.training.talk.items import parsed, raw


def item(name, text):
    return replace(parsed(raw()), id=name, told=(Message("user", text),))


def test_near_duplicates_are_found_and_others_are_not():
    words = [f"w{i}" for i in range(60)]
    whole = item("whole", " ".join(words))
    most = item("most", " ".join([*words[:50], *(["x", "y", "z", "v", "u", "t", "s", "r", "q", "p"])]))
    third = item("third", " ".join([*words[:30], *(f"v{i}" for i in range(30))]))
    found = near_duplicates([whole, most, third])
    assert [(a, b) for a, b, _ in found] == [("whole", "most")]
    shared, all_of = shingles(whole) & shingles(most), shingles(whole) | shingles(most)
    assert found[0][2] == len(shared) / len(all_of)


def test_values_of_slots_do_not_make_a_text_another():
    first = item("a", "{NAME1} went home to {TOWN1} again last week")
    second = item("b", "{NAME1} went home to {TOWN1} again last week")
    assert shingles(first) == shingles(second)


def test_distinct_trigrams_count_what_is_new():
    assert distinct_trigrams(["a b c d"], 4) == 500
    assert distinct_trigrams(["a b c a b c a b c a b c"], 100) == 250
    assert distinct_trigrams(["a b c d e", "f g"], 4) == 500
