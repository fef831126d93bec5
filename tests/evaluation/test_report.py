"""Figures and plots of hand-made answers."""

from pathlib import Path
from typing import Any

import pytest

from mplus.evaluation import plots
from mplus.evaluation.report import as_json, cells, common, groups, kinds, lines, markdown


def row(mode: str, level: int, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "mode": mode,
        "level": level,
        "id": f"q{number}",
        "kind": "told",
        "cluster": f"c{number % 3}",
        "gold": ["x"],
        "found": [{"name": "x", "relevance": 1.0}],
        "rank": 1 + number,
        "answerable": True,
        "contains": number % 2 == 0,
        "exact": False,
        "f1": 0.5,
        "declined": False,
        "seconds": 0.1,
        **changes,
    }


ROWS = [row("mplus", level, n, kind="updated" if n == 3 else "told") for level in (1000, 0) for n in range(4)] + [
    row("mplus", 0, 9, answerable=False, gold=[], declined=True, contains=False, kind="unknown"),
    row("closed-book", 0, 0, found=[], rank=None),
]


def test_lines_count_what_can_be_counted() -> None:
    report = lines(ROWS)
    assert [(line.mode, line.level) for line in report] == [("mplus", 0), ("mplus", 1000), ("closed-book", 0)]
    first = report[0]
    assert first.questions == 4 and first.contains is not None and first.contains.mean == 0.5
    assert {k: v.mean for k, v in first.found.items()} == {1: 0.25, 3: 0.75, 10: 1.0}
    assert first.abstention == (1.0, 1.0, 0.0)
    assert {k: (v.mean, v.size) for k, v in first.by_kind.items()} == {"told": (2 / 3, 3), "updated": (0.0, 1)}
    assert report[2].found == {} and cells(report[2])[6] == "–"


def test_tables_and_json_hold_the_same_figures() -> None:
    report = lines(ROWS)
    table = markdown(ROWS)
    assert "| mplus | 1,000 | 4 | 0.500 [" in table
    assert len(kinds(report)) == 4 and "| updated | 1 |" in table
    assert as_json(report)[0]["found"]["3"]["mean"] == 0.75


def test_only_unanswerable_questions_have_no_score() -> None:
    (line,) = lines([row("mplus", 0, 1, answerable=False, gold=[])])
    assert line.contains is None and cells(line)[3] == "–"


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots.retention(lines(ROWS), tmp_path / "curves.png", title="facts")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to plot"):
        plots.retention([], tmp_path / "none.png", title="")


def test_without_matplotlib_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    with pytest.raises(ValueError, match=r"mplus-memory\[evaluate\]"):
        plots.retention(lines(ROWS), tmp_path / "curves.png", title="")


def test_groups_and_common_questions_have_tables_of_their_own() -> None:
    rows = [
        row("mplus", 0, 0, group="conversation"),
        row("mplus", 0, 1, group="conversation", answerable=False, gold=[], contains=False, declined=True),
        row("mplus", 0, 2, group="document"),
        row("mplus", 0, 3, group="common", kind="trivia", contains=True, text="Paris.", gold=[]),
        row("mplus", 0, 4, group="common", kind="trivia", contains=False, text="I don't know.", gold=[], declined=True),
        row("mplus", 0, 5, group="common", kind="trivia", contains=False, text="Hi!", gold=[], answerable=False),
        row("empty-memory", 0, 3, group="common", kind="trivia", contains=True, text="Paris.", gold=[]),
        row("empty-memory", 0, 4, group="common", kind="trivia", contains=True, text="Rome.", gold=[]),
        row("empty-memory", 0, 5, group="common", kind="trivia", contains=False, text="Hi!", gold=[], answerable=False),
    ]
    found = {name: line for name, line in groups(rows)}
    assert found["conversation"].questions == 1 and found["conversation"].abstention.recall == 1
    assert found["document"].abstention.recall is None
    # A request without an answer is nothing that ought to be declined.
    assert {line.mode: line.abstention.recall for line in lines(rows)}["empty-memory"] is None
    table = {cells[1]: cells for cells in common(rows)}
    assert table["mplus"] == ("trivia", "mplus", "0", "3", "1 of 2", "2", "0.667", "0.333", "1.000")
    assert table["empty-memory"][4:7] == ("2 of 2", "2", "1.000")
    assert "| document | mplus | 0 | 1 |" in markdown(rows) and "| trivia | mplus |" in markdown(rows)
