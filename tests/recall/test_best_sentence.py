"""The sentence that answers stands next to the prompt."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus import MPlus
from mplus.config import MemoryConfig
from mplus.inert import encode_inert
from mplus.read.prefill import ReadRequest, prefill
from mplus.recall.best_sentence import paragraph_size, sentence_sizes, turned
from mplus.testing import tiny_model
from tests.conftest import TINY

STORY = [
    "The miller had a daughter called Rosalind, who sang in the choir of the village church on every holiday.",
    " Her brother Peregrine kept eleven geese behind the barn, and sold their eggs at the market in the town.",
    " One winter the river froze from bank to bank, and the great wheel of the mill stood still for seven weeks.",
    " In spring a pedlar came along the road with a cart, and sold them a clock of brass that struck the hours.",
]
ASKED = "How many geese did the brother keep?"
ROOMY = TINY.model_copy(
    update={"chunk_tokens": 112, "short_term_tokens": 480, "recalled_tokens": 480, "recalled_neighbours": 4}
)


def test_sentences_by_their_ends() -> None:
    ends = torch.zeros(20, dtype=torch.bool)
    assert sentence_sizes(ends, 5).tolist() == [20]
    ends[[1, 6, 9, 19]] = True
    assert sentence_sizes(ends, 1).tolist() == [2, 5, 3, 10]
    assert sentence_sizes(ends, 5).tolist() == [7, 13], "the first and the third are too short"
    assert sentence_sizes(ends[:1], 5).tolist() == [1]


def test_a_paragraph_goes_from_one_end_of_a_line_to_the_next() -> None:
    ends = torch.zeros(10, dtype=torch.bool)
    assert paragraph_size(ends, 4) == 10
    ends[[2, 6]] = True
    assert [paragraph_size(ends, place) for place in range(10)] == [3, 3, 3, 4, 4, 4, 4, 3, 3, 3]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 2))
def test_a_text_is_turned_so_that_a_sentence_is_last(sizes: list[int], best: int, again: int) -> None:
    best %= len(sizes)
    names = [[f"{number}.{token}" for token in range(size)] for number, size in enumerate(sizes)]
    order = [*range(best + 1, len(sizes)), *range(best), best, *[best] * again]
    text = [*chain(*names)]
    read = [text[place] for place in turned(torch.tensor(sizes), best, again).tolist()]
    assert read == [*chain(*(names[number] for number in order))]


def text_read(model: MPlus, request: ReadRequest, ids: list[int]) -> str:
    """What a read has before the prompt, of a memory in which only this was written."""
    (chosen,) = prefill(model.weights, [request]).reading.recalled[0]
    track = request.state.tracks[0]
    first = len(track.long_term) + len(track.pending)
    places = torch.cat([chosen.index, first + torch.arange(len(track.short_term))])
    rows = places if chosen.order is None else places[chosen.order]
    return model.tokenizer.decode([ids[place] for place in rows.tolist()])


@pytest.mark.default_model
@pytest.mark.parametrize(("times", "short_term"), [(0, 512), (1, 512), (2, 512), (2, 64), (2, 0), (3, 512)])
def test_the_default_model_reads_the_sentence_asked_for_last(default_model: MPlus, times: int, short_term: int) -> None:
    """Wherever its tokens are: in short-term memory, pending, or both."""
    sizes = {"best_sentence_times": times, "short_term_tokens": short_term, "recalled_tokens": 512}
    memory = default_model.new_memory(config=default_model.memory_config.model_copy(update=sizes))
    text = "".join(STORY)
    default_model.write(memory, text)
    request = default_model.read_request(memory, [{"role": "user", "content": ASKED}])
    read = text_read(default_model, request, encode_inert(default_model.tokenizer, text))
    before, best, *after = STORY
    expected = [*after, before, *[best] * times] if times else STORY
    assert read == "".join(expected)


@pytest.mark.default_model
def test_lines_are_read_as_they_stand_and_a_paragraph_under_a_title_is_turned(default_model: MPlus) -> None:
    config = default_model.memory_config.model_copy(update={"short_term_tokens": 512})
    before, best, *after = STORY
    lines = "\n".join(sentence.strip() for sentence in STORY)
    titled = f"A mill\n{''.join(STORY)}"
    for text, expected in ((lines, lines), (titled, "".join([*after, f"A mill\n{before}", best, best]))):
        memory = default_model.new_memory(config=config)
        default_model.write(memory, text)
        request = default_model.read_request(memory, [{"role": "user", "content": ASKED}])
        assert text_read(default_model, request, encode_inert(default_model.tokenizer, text)) == expected


@pytest.mark.default_model
def test_a_change_stays_behind_what_it_changes(default_model: MPlus) -> None:
    memory = default_model.new_memory()
    for text in (
        "My bank password is maple44. I chose it all by myself when I was in the town of Aarau, on a Monday in May.",
        "My bank password has changed; it is lantern90 now.",
    ):
        default_model.write(memory, text)
    request = default_model.read_request(memory, [{"role": "user", "content": "What is my bank password?"}])
    (chosen,) = prefill(default_model.weights, [request]).reading.recalled[0]
    assert chosen.order is not None
    assert chosen.order.tolist() == list(range(len(chosen.order))), "nothing is turned, nothing said again"


@pytest.mark.parametrize("recall", ["late", "attention"])
@pytest.mark.parametrize("fillers", [0, 20])
def test_what_is_turned_is_read_as_if_written_so(recall: str, fillers: int, text: str) -> None:
    """Held against the same read with nothing turned: the same rows, and those of one sentence twice."""
    orders: list[list[int]] = []
    for times in (0, 2):
        config = MemoryConfig(**(ROOMY.model_dump() | {"recall": recall, "best_sentence_times": times}))
        model = tiny_model(memory=config)
        memory = model.new_memory()
        model.write(memory, "".join(STORY), source="story")
        for number in range(fillers):
            model.write(memory, text[number : number + 30], source=f"filler {number}")
        request = model.read_request(memory, ASKED)
        (chosen,) = prefill(model.weights, [request]).reading.recalled[0]
        assert chosen.order is not None
        orders.append(chosen.order.tolist())
        answer = model.generate(memory, ASKED, max_new_tokens=3)
        assert answer.prefix_tokens == 1 + len(chosen.order) <= config.prefix_tokens
    plain, twice = orders
    assert sorted(set(twice)) == sorted(plain)
    again = len(twice) - len(plain)
    if fillers:
        assert 0 <= again <= config.chunk_tokens
        return
    assert again >= config.minimum_chunk_tokens
    assert twice[-again:] == twice[-2 * again : -again]


def test_room_is_left_for_repeated_tokens(text: str) -> None:
    config = ROOMY.model_copy(update={"best_sentence_times": 3})
    assert config.prefix_tokens == ROOMY.prefix_tokens + 2 * config.chunk_tokens
    assert config.model_copy(update={"layout": "token"}).prefix_tokens == ROOMY.prefix_tokens
    model = tiny_model(memory=ROOMY)
    room = {}
    for times in (0, 3):
        memory = model.new_memory(config=ROOMY.model_copy(update={"best_sentence_times": times}))
        model.write(memory, text)
        room[times] = model.prompt_room(memory)
    assert room[0] - room[3] == 2 * config.chunk_tokens
