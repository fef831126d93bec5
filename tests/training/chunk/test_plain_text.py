import gzip
import random
from pathlib import Path

import pytest

from mplus.testing import byte_tokenizer
from mplus.training.chunk.cloze import GAP, PASSAGE_CHARACTERS, passages, questions_about
from mplus.training.chunk.plain_text import Document, Episodes, held_out, read_documents
from mplus.training.chunk.questions import has_facts, read_dialogues, read_squad

STORY = (
    "The harbour of Antwerp was quiet in winter. A lantern stood in every window of the house that Johanna kept.\n"
    "Her brother sold 412 violins in a single year! Nobody in the street believed the story about the orchard."
)


def test_a_folder_is_read_to_its_depth_in_a_fixed_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b" / "c" / "two.rst").write_text("second")
    (tmp_path / "b" / "more.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth", "id": 3}\n')
    with gzip.open(tmp_path / "d.md.gz", "wt") as file:
        file.write("fifth")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("not this")
    (tmp_path / "empty.txt").write_text("  \n")
    found = read_documents([tmp_path])
    assert [d.text for d in found] == ["first", "second", "third", "fourth", "fifth"]
    assert read_documents([tmp_path / "a.txt"])[0].name.endswith("a.txt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "cannot be read as text .* Expected UTF-8"),
        ("a.jsonl", b'{"words": 3}', 'line 1: "text" is None, expected a string'),
        ("a.jsonl", b'{"text": 3}', 'line 1: "text" is 3, expected a string'),
        ("a.bin", b"data", "no text found"),
    ],
)
def test_what_is_no_text_says_so(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_documents([tmp_path])
    with pytest.raises(ValueError, match="no such file or folder"):
        read_documents([tmp_path / "nowhere"])


def test_some_documents_are_held_out() -> None:
    documents = [Document(str(n), "text") for n in range(60)]
    learnt, spared = held_out(documents, random.Random(0))
    assert len(spared) == 3 and len(learnt) == 57 and not set(learnt) & set(spared)
    assert held_out(documents[:1], random.Random(0)) == (documents[:1], [])


def test_episodes_are_stretches_of_documents() -> None:
    tokenizer = byte_tokenizer()
    texts = [f"{n}:" + "".join(chr(97 + i % 26) for i in range(size)) for n, size in enumerate((90, 150, 900, 20))]
    drawn = Episodes(
        [Document(str(n), t) for n, t in enumerate(texts)],
        tokenizer,
        short_tokens=200,
        chunk_tokens=(16, 40),
        target_tokens=50,
    )
    assert drawn.long == [2]
    rng = random.Random(0)
    lengths, repeated, found_long = set(), 0, 0
    for _ in range(300):
        episode = drawn.draw(rng, long=0.3, most=400, repeat=0.1)
        assert all(16 <= len(chunk) <= 40 for chunk in episode.chunks) and episode.chunks
        lengths |= {len(chunk) for chunk in episode.chunks}
        context, target = tokenizer.decode(episode.context), tokenizer.decode(episode.target)
        if target.startswith("Repeat: "):
            repeated += 1
            assert context.startswith(target.removeprefix("Repeat: "))
            continue
        assert 16 <= len(target) <= 50
        assert any(context + target in text for text in texts), "what is predicted follows what was written"
        assert len(episode.context) + len(target) <= 400
        found_long += context in texts[2] and context not in texts[1]
    assert lengths >= set(range(16, 41)) and 15 < repeated < 50 and found_long > 40
    assert all(len(drawn.draw(rng, long=0.3, most=400, repeat=0, single=True).chunks) == 1 for _ in range(20))


def test_texts_too_short_for_an_episode_are_refused() -> None:
    with pytest.raises(ValueError, match="None of 2 documents has 48 tokens"):
        Episodes(
            [Document("a", "short"), Document("b", "also short")],
            byte_tokenizer(),
            short_tokens=200,
            chunk_tokens=(16, 40),
            target_tokens=50,
        )


def test_passages_hold_every_character_of_a_document() -> None:
    text = "\n\n".join([STORY, STORY * 20, "x" * 3000, STORY])
    found = passages(Document("a", text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert max(map(len, found)) <= PASSAGE_CHARACTERS
    assert len(found) > 5


def test_questions_are_answered_by_their_passage_and_do_not_say_the_answer() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(60):
        for question in questions_about(STORY, 3, rng, 2):
            (answer,) = question.answers
            assert answer in STORY and question.passages == (3,)
            assert answer.lower() not in question.text.lower()
            assert answer in question.reply
            seen.add(GAP in question.text)
    assert seen == {True, False}
    assert questions_about("Too short.", 0, rng, 2) == []
    in_chinese = "这是一个很长的句子,讲述了一个古老港口的故事和那里的人们。"
    assert questions_about(in_chinese, 0, rng, 1), "no spaces are needed to ask how a sentence goes on"


@pytest.mark.parametrize("content", ["{}", "[1]", "no JSON", '{"data": [{"paragraphs": [{"qas": []}]}]}'])
def test_what_is_not_squad_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"squad=.*a\.json.*not SQuAD JSON"):
        read_squad(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"data": []}')
    with pytest.raises(ValueError, match="no questions in it"):
        read_squad(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not SQuAD JSON"):
        read_squad(tmp_path / "nowhere.json")


def test_conversations_are_read_or_say_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text('{"id": "1", "turns": [["u", "Hello"], ["s", "Good day"]], "facts": []}\n')
    names, talks = read_dialogues(path, 10, random.Random(0))
    assert (names, talks) == (["1"], ["User: Hello\nAssistant: Good day"])
    assert has_facts(path, 1) and not has_facts(path, 2)
    for content in ("words", "{}", '{"id": "1", "turns": [["x", "Hello"]]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="not conversations"):
            read_dialogues(path, 10, random.Random(0))
