"""Every format, on tiny hand-made files."""

import gzip
import json
import random
import sys
import tarfile
from pathlib import Path

import pytest

from mplus.evaluation.data_files import passages
from mplus.evaluation.datasets import READERS
from mplus.evaluation.formats import recognised
from mplus.evaluation.metrics import contains_answer, exact_match
from mplus.evaluation.tasks import Task
from tests.evaluation.data import AGENT_BENCH, BEAM, LOCOMO, LONGMEMEVAL, filler_file, lines_file, squad_file


def read(name: str, path: Path, questions: int, unanswerable: int = 0, seed: int = 0) -> Task:
    task = READERS[name](path, questions, unanswerable, random.Random(seed))
    assert task == READERS[name](path, questions, unanswerable, random.Random(seed))
    assert sum(q.is_answerable for q in task.questions) == questions
    assert len(task.questions) == questions + unanswerable
    assert len({q.id for q in task.questions}) == len(task.questions)
    used = {name for q in task.questions for name in q.contexts}
    assert used == set(task.contexts)
    return task


def says(task: Task, names: tuple[str, ...]) -> str:
    return "\n".join(task.contexts[name] for name in names)


def test_squad(tmp_path: Path) -> None:
    task = read("squad", squad_file(tmp_path), 8, 3)
    for question in task.questions:
        written = says(task, question.contexts)
        if question.is_answerable:
            assert contains_answer(written, question.answers[:1]) and question.gold == question.contexts
    # What is asked in vain is written nowhere, nor does it stand among the distractors.
    everything = " ".join((*task.contexts.values(), *task.spare))
    for question in task.questions:
        tower = question.text.split("tower ")[1].split("?")[0].split()[0]
        assert (f"tower {tower} " in everything) == question.is_answerable
    assert len(task.contexts) + len(task.spare) == 12 - 3


def test_squad_asks_every_paragraph_before_it_asks_one_twice(tmp_path: Path) -> None:
    path = squad_file(tmp_path)
    assert len(read("squad", path, 12).contexts) == 12
    assert len(read("squad", path, 20).contexts) == 12
    with pytest.raises(ValueError, match="at most 24"):
        read("squad", path, 25)


NQ = [
    {
        "question": f"who wrote book {n}",
        "answers": [f"Author {n}", f"A. {n}"],
        "ctxs": [
            {"title": f"Book {n}", "text": f"It was written by Author {n} in spring."},
            {"title": "Other", "text": f"Unrelated page {n}."},
        ],
    }
    for n in range(6)
]


def test_natural_questions(tmp_path: Path) -> None:
    task = read("nq", lines_file(tmp_path, "nq.jsonl", NQ), 3, 2)
    for question in task.questions:
        number = question.text.split()[-1]
        assert (f"Book {number}\n" in says(task, question.contexts)) == question.is_answerable
    assert sum("Unrelated" in text for text in task.spare) == 3
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(NQ), encoding="utf-8")
    assert read("nq", listed, 3, 2) == task


DIALOGUES = [
    {
        "id": f"d{n}",
        "services": ["Restaurants_1"],
        "turns": [
            ["u", f"A table in Town{n} for {n + 2} people at 7:1{n} pm."],
            ["s", f"I found Chez{n}. Or Bistro{n}?"],
        ],
        "facts": [
            [0, "inform", "Restaurants_1", "city", f"Town{n}"],
            [0, "inform", "Restaurants_1", "party_size", f"{n + 2}"],
            [0, "inform", "Restaurants_1", "time", f"7:1{n} pm"],
            [1, "offer", "Restaurants_1", "name", f"Chez{n}"],
            [1, "offer", "Restaurants_1", "name", f"Bistro{n}"],
            [1, "inform", "Restaurants_1", "has_music", "True"],
            [1, "inform", "Restaurants_1", "phone", "never said"],
        ],
    }
    for n in range(6)
] + [{"id": "idle", "services": [], "turns": [["u", "Hi!"], ["s", "Bye!"]], "facts": []}]


def test_dialogue(tmp_path: Path) -> None:
    task = read("dialogue", lines_file(tmp_path, "sgd.jsonl", DIALOGUES), 3, 2)
    for question in task.questions:
        assert question.text.startswith("In the conversation about restaurants with ")
        # Two names were offered, one value is no text, one was never said: none of these is asked for.
        assert question.text.split("what was the ")[1] in ("city?", "party size?", "time?")
        if question.is_answerable:
            said = says(task, question.contexts)
            assert question.answers[0] in said and said.startswith("User: A table")
    assert "User: Hi!\nAssistant: Bye!" in task.spare


def test_a_dialogue_is_asked_about_by_what_no_other_has(tmp_path: Path) -> None:
    def booked(name: str, service: str, **slots: str) -> dict[str, object]:
        said = ", ".join(slots.values())
        facts = [[0, "inform", service, slot, value] for slot, value in slots.items()]
        return {"id": name, "turns": [["u", f"I want {said}."]], "facts": facts}

    records = [
        booked("first", "RentalCars_1", city="Graz", day="Monday", kind="van"),
        booked("second", "RentalCars_2", city="Graz", day="monday", kind="coupe"),  # the same city and day
        booked("other topic", "Hotels_1", city="Graz", day="Monday", stars="4"),
        booked("half a number", "Hotels_1", city="Linz", hour="12:30", stars="2"),  # 2 is said as part of 12:30 only
    ]
    records[3]["turns"] = [["u", "Linz at 12:30."]]
    path = lines_file(tmp_path, "sgd.jsonl", records)
    asked = {q.text for seed in range(40) for q in read("dialogue", path, 3, seed=seed).questions}
    assert asked == {
        "In the conversation about rental cars with city Graz and kind van, what was the day?",
        "In the conversation about rental cars with day Monday and kind van, what was the city?",
        "In the conversation about rental cars with city Graz and kind coupe, what was the day?",
        "In the conversation about rental cars with day monday and kind coupe, what was the city?",
        "In the conversation about hotels with day Monday and stars 4, what was the city?",
        "In the conversation about hotels with city Graz and stars 4, what was the day?",
        "In the conversation about hotels with city Graz and day Monday, what were the stars?",
    }
    with pytest.raises(ValueError, match="at most 3"):
        read("dialogue", path, 4)


STORIES = """1 Mary went to the hall.
2 John took the milk.
3 Where is Mary?\thall\t1
4 John took the ball.
5 What is John carrying?\tmilk,ball\t2 4
1 The office is north of the hall.
2 How do you go from the hall to the office?\tn,w\t1
"""


def test_babi(tmp_path: Path) -> None:
    (tmp_path / "qa8_lists_test.txt").write_text(STORIES, encoding="utf-8")
    (tmp_path / "qa8_lists_train.txt").write_text(STORIES * 3, encoding="utf-8")
    (tmp_path / "qa10_other_test.txt").write_text(STORIES, encoding="utf-8")
    archive = tmp_path / "en.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for file in tmp_path.glob("*.txt"):
            packed.add(file, f"en/{file.name}")
    folder = read("babi", tmp_path, 4)
    assert folder == read("babi", archive, 4)
    assert {q.kind for q in folder.questions} == {"qa8", "qa10"}
    for question in folder.questions:
        written = says(folder, question.contexts)
        assert "?" not in written
        if question.text == "Where is Mary?":
            assert written == "Mary went to the hall. John took the milk."
        if question.text.startswith("What"):
            assert written.endswith("John took the ball.")
            assert exact_match("ball, milk", question.answers) and exact_match("milk and ball.", question.answers)
        if question.text.startswith("How"):
            assert exact_match("north, west", question.answers) and not exact_match("west, north", question.answers)
    with pytest.raises(ValueError, match="Leave it out"):
        read("babi", archive, 2, 1)
    bars = tmp_path / "qa1_bars_test.txt"
    bars.write_text(STORIES.replace("\t", "|").replace("?|", "? |"), encoding="utf-8")
    tabs = tmp_path / "qa1_tabs_test.txt"
    tabs.write_text(STORIES, encoding="utf-8")
    assert read("babi", bars, 2).questions == read("babi", tabs, 2).questions
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="as an archive"):
        read("babi", tmp_path / "broken.tgz", 1)


def test_locomo(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(LOCOMO), encoding="utf-8")
    task = read("locomo", path, 4, 2)
    assert {q.kind for q in task.questions} == {"temporal", "multi-hop", "adversarial"}
    for question in task.questions:
        assert [name.split("/")[1] for name in question.contexts] == ["session_1", "session_2", "session_10"]
        if question.kind == "temporal":
            assert question.answers == ("2022",) and question.gold[0].endswith("/session_2")
        if question.kind == "multi-hop":
            assert len(question.gold) == 2
    first = task.contexts["conv-0/session_1"]
    assert first.startswith("Conversation at 1:56 pm on 8 May, 2023.\nAda: I painted a lake. [shows a picture: a lake")
    assert task.levels == (0,)


def test_longmemeval(tmp_path: Path) -> None:
    path = tmp_path / "longmemeval_s.json"
    path.write_text(json.dumps(LONGMEMEVAL), encoding="utf-8")
    task = read("longmemeval", path, 3, 1)
    assert task.levels == (0,) and {q.kind for q in task.questions} == {
        *("single-session-user", "temporal-reasoning", "abstention")
    }
    by_id = {q.id: q for q in task.questions}
    asked = by_id["user-0"]
    assert asked.answers == ("Rex",) and asked.gold == ("user-0/answer_1",)
    assert asked.contexts == ("user-0/chat_7", "user-0/answer_1", "user-0/chat_7-2")  # a session may be there twice
    said = task.contexts["user-0/answer_1"]
    assert said == "Conversation on 2023/05/21 (Sun) 10:00.\nUser: My dog is called Rex.\nAssistant: A fine name."
    assert contains_answer(said, asked.answers)
    assert by_id["when-0"].answers == ("3",)  # a number in the file
    assert by_id["when-0"].text == "Today is 2023/05/24 (Wed) 09:00. How many days ago did I name him?"
    assert not by_id["cat_abs"].is_answerable and by_id["cat_abs"].contexts


BAD_SESSIONS: list[tuple[dict[str, object], str]] = [
    ({"haystack_dates": []}, "record 1: expected haystack_session_ids.* of one length"),
    ({"haystack_sessions": [["hi"], [], []]}, "record 1, session chat_7: 'hi' is no turn"),
    ({"haystack_sessions": [[{"role": "user"}], [], []]}, "is no turn; expected role and content"),
    ({"haystack_sessions": [[], [], []]}, "no session has a turn"),
    ({"haystack_sessions": None}, "of one length"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SESSIONS)
def test_a_broken_history_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = lines_file(tmp_path, "broken.json", [{**LONGMEMEVAL[0], **changes}])
    with pytest.raises(ValueError, match=f"broken.json.*{message}"):
        READERS["longmemeval"](path, 1, 0, random.Random(0))


def test_memory_agent_bench(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "conflict.jsonl", AGENT_BENCH)
    task = read("memoryagentbench", path, 3)
    assert {(q.kind, q.group) for q in task.questions} == {
        ("factconsolidation_sh_6k", "selective forgetting"),
        ("ruler_qa1_197K", "retrieval"),
    }
    for question in task.questions:
        written = says(task, question.contexts)
        assert question.gold and len(question.gold) < len(question.contexts)
        assert all(contains_answer(task.contexts[name], question.answers) for name in question.gold)
        assert contains_answer(written, question.answers)
        assert list(question.contexts) == [name for name in task.contexts if name in question.contexts]
    facts = next(q for q in task.questions if q.group == "selective forgetting")
    # What is said first and what replaces it stand in the order of the file.
    assert says(task, facts.contexts).split() == str(AGENT_BENCH[0]["context"]).split()
    assert all(len(text.split()) <= 120 for text in task.contexts.values())
    with pytest.raises(ValueError, match="Leave it out"):
        read("memoryagentbench", path, 1, 1)
    with pytest.raises(ValueError, match="4 questions wanted, but it has 3"):
        read("memoryagentbench", path, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [["a"]]}, "record 1: expected questions and answers as lists of one length"),
        ({"answers": [["a"], []]}, "question 1 has no answer"),
        ({"context": " "}, "the context is empty"),
        ({"questions": "What?"}, "as lists of one length"),
    ],
)
def test_a_broken_row_of_memory_agent_bench_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = lines_file(tmp_path, "broken.jsonl", [{**AGENT_BENCH[0], **changes}])
    with pytest.raises(ValueError, match=f"broken.jsonl.*{message}"):
        READERS["memoryagentbench"](path, 1, 0, random.Random(0))


@pytest.mark.parametrize("form", ["table", "batches", "plans"])
def test_beam(form: str, tmp_path: Path) -> None:
    record = dict(BEAM)
    if form == "table":  # as text, the way Python writes it
        record["probing_questions"] = repr(BEAM["probing_questions"])
    if form == "batches":
        record["chat"] = [{"batch_number": 1, "time_anchor": "March-15-2024", "turns": batch} for batch in BEAM["chat"]]
    if form == "plans":
        record["chat"] = [{"plan-1": BEAM["chat"][:1]}, {"plan-2": BEAM["chat"][1:]}]
    task = read("beam", lines_file(tmp_path, "beam.jsonl", [record]), 3, 1)
    assert {q.kind for q in task.questions} == {
        *("information_extraction", "knowledge_update", "instruction_following", "abstention")
    }
    by_kind = {q.kind: q for q in task.questions}
    assert len(task.contexts) == 3
    asked = by_kind["information_extraction"]
    assert asked.answers == ("14 May",) and asked.gold == ("4/0",)
    assert by_kind["knowledge_update"].gold == ("4/0", "4/2")
    first, last = task.contexts["4/0"], task.contexts["4/2"]
    assert first == "Conversation on March-15-2024.\nUser: The launch is on 14 May.\nAssistant: Noted."
    assert last.endswith("User: The launch is on 20 May now.\nAssistant: Changed.")
    assert by_kind["instruction_following"].answers == ("Dates with the month in words.",)


BAD_BEAM: list[tuple[dict[str, object], str]] = [
    ({"chat": []}, "record 1: chat has no message"),
    ({"chat": ["hello"]}, "'hello' in chat"),
    ({"probing_questions": "{x"}, "neither JSON nor a literal"),
    ({"probing_questions": ["q"]}, "as lists by ability"),
    ({"probing_questions": {"event_ordering": ["q"]}}, "event_ordering has 'q'"),
    ({"probing_questions": {"event_ordering": [{"question": "q"}]}}, "expected one of answer, ideal_answer"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_BEAM)
def test_a_broken_record_of_beam_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    path = lines_file(tmp_path, "broken.jsonl", [{**BEAM, **changes}])
    with pytest.raises(ValueError, match=f"broken.jsonl.*{message}"):
        READERS["beam"](path, 1, 0, random.Random(0))


def test_tables_are_read_as_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "conflict.parquet"
    path.write_bytes(b"PAR1 and no more")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(ValueError, match=r"conflict.parquet: .*pip install pyarrow"):
            READERS["memoryagentbench"](path, 1, 0, random.Random(0))
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(ValueError, match=r"conflict.parquet: not a parquet file"):
        READERS["memoryagentbench"](path, 1, 0, random.Random(0))
    parquet.write_table(pyarrow.Table.from_pylist(AGENT_BENCH), path)
    assert read("memoryagentbench", path, 3) == read(
        "memoryagentbench", lines_file(tmp_path, "x.jsonl", AGENT_BENCH), 3
    )
    assert recognised(path) == "memoryagentbench"


def test_long_documents(tmp_path: Path) -> None:
    longbench = [
        {"input": "Who?", "context": "A long tale of Ida.", "answers": ["Ida", "Miss Ida"], "dataset": "narrativeqa"},
        {"input": "Where?", "context": "A long tale of Ida.", "answers": ["Graz"], "dataset": "narrativeqa"},
        {"input": "What?", "context": "Another tale.", "answers": ["A tale"], "dataset": "qasper"},
    ]
    task = read("longdoc", lines_file(tmp_path, "long.jsonl", longbench), 3)
    assert len(task.contexts) == 2 and {q.kind for q in task.questions} == {"narrativeqa", "qasper"}
    infinite = [
        {"id": 0, "input": "Who?", "context": "A.", "answer": "Ida", "options": []},
        {"id": 1, "input": "Which?", "context": "B.", "answer": ["Two"], "options": ["One", "Two"]},
        {"id": 2, "input": "When?", "context": "C.", "answer": ["Now"], "options": []},
    ]
    task = read("longdoc", lines_file(tmp_path, "infinite.jsonl", infinite), 2, 1)
    assert all(isinstance(a, str) and len(a) > 1 for q in task.questions for a in q.answers)
    assert all("Options: One; Two" in q.text for q in task.questions if q.text.startswith("Which?"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("squad", "{", "not JSON"),
        ("squad", "{}", "no 'data'"),
        ("nq", '{"question": "q"}\n', "no 'answers'"),
        ("nq", '{"question": "q", "answers": ["a"], "ctxs": []}\n', r"no ctxs\[0\].text"),
        ("nq", "[1]", "no JSON object"),
        ("nq", '{"question": "q"}\n{"q\n', "line 2: not JSON"),
        ("dialogue", '{"id": "x"}\n', "no 'turns'"),
        ("locomo", '[{"sample_id": "x"}]', "no 'conversation'"),
        ("longdoc", '{"input": "q"}\n', "no 'context'"),
        ("longmemeval", '{"question_id": "x"}\n', "no 'question_type'"),
        ("memoryagentbench", '{"questions": []}\n', "no 'context'"),
        ("beam", '{"probing_questions": {}}\n', "no 'chat'"),
        ("babi", "Mary went home.\n", "does not begin with a number"),
        ("babi", "1 Mary went home.\n2 Where is she?\n", "no question in it"),
    ],
)
def test_a_file_of_another_format_says_what_is_missing(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        READERS[name](path, 1, 0, random.Random(0))
    assert "file.txt" in str(error.value)


def test_distractors_of_every_kind_of_file(tmp_path: Path) -> None:
    assert len(passages(squad_file(tmp_path))) == 12
    assert passages(lines_file(tmp_path, "sgd.jsonl", DIALOGUES))[-1] == "User: Hi!\nAssistant: Bye!"
    assert len(passages(lines_file(tmp_path, "nq.jsonl", NQ))) == 12
    assert passages(lines_file(tmp_path, "texts.jsonl", [{"text": "One."}, {"context": "Two."}])) == ["One.", "Two."]
    plain = filler_file(tmp_path)
    whole = passages(plain)
    assert len(whole) > 10 and "\n\n".join(whole) == plain.read_text(encoding="utf-8")
    packed = tmp_path / "filler.txt.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert passages(packed) == whole
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.md").write_text("A note.", encoding="utf-8")
    (folder / "b.py").write_text("code", encoding="utf-8")
    assert passages(folder) == ["A note."]
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no text found"):
        passages(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="expected text under"):
        passages(lines_file(tmp_path, "odd.jsonl", [{"title": "x"}]))
