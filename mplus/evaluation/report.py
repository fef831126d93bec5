"""Figures of a run: one line per way of answering and level, with 95% bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mplus.evaluation.metrics import Abstention, Estimate, abstention, estimate
from mplus.evaluation.modes import EMPTY
from mplus.evaluation.raw_answers import by_mode_and_level
from mplus.evaluation.tasks import COMMON

RANKS = (1, 3, 10)


@dataclass(frozen=True)
class Line:
    """Figures of one way of answering at one level.

    Attributes:
        mode: The way of answering.
        level: Distractor tokens it stands for.
        questions: How many were answerable.
        contains: Share whose answer holds an accepted one.
        exact: Share that is one.
        f1: Mean token F1.
        by_kind: Contains-answer by kind of question, where there are several kinds.
        found: Share whose right source is among the first k, by k; empty where nothing is searched.
        abstention: How well it declines.
        seconds: Seconds of all its answers.
    """

    mode: str
    level: int
    questions: int
    contains: Estimate | None
    exact: Estimate | None
    f1: Estimate | None
    by_kind: dict[str, Estimate]
    found: dict[int, Estimate]
    abstention: Abstention
    seconds: float


def lines(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """Figures of raw answers."""
    return [_line(mode, level, group) for (mode, level), group in by_mode_and_level(rows).items()]


def _line(mode: str, level: int, rows: Sequence[dict[str, Any]]) -> Line:
    asked = [row for row in rows if row["answerable"]]

    def figure(name: str) -> Estimate | None:
        return _mean(asked, [row[name] for row in asked]) if asked else None

    # A common question without an accepted answer is none that should be declined.
    judged = [row for row in rows if row["answerable"] or row.get("group") != COMMON]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in asked:
        by_kind.setdefault(row["kind"], []).append(row)
    searched = [row for row in asked if row["gold"] and row["found"]]
    return Line(
        mode,
        level,
        len(asked),
        figure("contains"),
        figure("exact"),
        figure("f1"),
        {kind: _mean(mine, [row["contains"] for row in mine]) for kind, mine in by_kind.items() if len(by_kind) > 1},
        {rank: _mean(searched, [_is_found(row, rank) for row in searched]) for rank in RANKS if searched},
        abstention([row["declined"] for row in judged], [row["answerable"] for row in judged]),
        sum(row["seconds"] for row in rows),
    )


def _mean(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> Estimate:
    return estimate([float(value) for value in values], [row["cluster"] for row in rows])


def _is_found(row: dict[str, Any], rank: int) -> bool:
    return row["rank"] is not None and row["rank"] <= rank


HEADINGS = ("mode", "tokens", "n", "contains", "exact", "F1", "source @1 / 3 / 10", "wrongly declined", "declined")

KIND_HEADINGS = ("mode", "tokens", "kind", "n", "contains")


def cells(line: Line) -> tuple[str, ...]:
    """A line as the table shows it; "declined" is the share of unanswerable questions that were."""
    found = " / ".join(f"{one.mean:.3f}" for one in line.found.values())
    return (
        line.mode,
        f"{line.level:,}",
        str(line.questions),
        str(line.contains or "–"),
        f"{line.exact.mean:.3f}" if line.exact else "–",
        f"{line.f1.mean:.3f}" if line.f1 else "–",
        found or "–",
        as_cell(line.abstention.wrongly_declined),
        as_cell(line.abstention.recall),
    )


def kinds(report: Sequence[Line]) -> list[tuple[str, ...]]:
    """Rows of a second table: contains-answer by kind of question."""
    return [
        (line.mode, f"{line.level:,}", kind, str(figure.size), str(figure))
        for line in report
        for kind, figure in line.by_kind.items()
    ]


GROUP_HEADINGS = ("about", "mode", "tokens", "n", "contains", "source @1", "never told", "declined", "wrongly declined")


def groups(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Line]]:
    """Figures by what questions are about, where that differs; common questions are last, and apart."""
    names = sorted({row.get("group") or "" for row in rows} - {"", COMMON})
    return [(name, line) for name in names for line in lines([row for row in rows if row["group"] == name])]


def group_cells(name: str, line: Line, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """A line of the table of groups."""
    mine = [row for row in rows if (row["group"], row["mode"], row["level"]) == (name, line.mode, line.level)]
    return (
        name,
        line.mode,
        f"{line.level:,}",
        str(line.questions),
        str(line.contains or "–"),
        f"{line.found[1].mean:.3f}" if line.found else "–",
        str(sum(not row["answerable"] for row in mine)),
        as_cell(line.abstention.recall),
        as_cell(line.abstention.wrongly_declined),
    )


COMMON_HEADINGS = (
    "common questions",
    "mode",
    "tokens",
    "n",
    "right",
    "right, empty memory",
    "same reply",
    "declined",
    "memory read",
)


def common(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Common questions beside a memory and with an empty one: how many are right, and the share of equal replies."""
    asked = [row for row in rows if row.get("group") == COMMON]
    empty = {row["id"]: row for row in asked if row["mode"] == EMPTY}
    found: list[tuple[str, ...]] = []
    for kind in dict.fromkeys(row["kind"] for row in asked):
        for (mode, level), group in by_mode_and_level([row for row in asked if row["kind"] == kind]).items():
            pairs = [(row, empty[row["id"]]) for row in group if row["id"] in empty]
            answered = [(row["contains"], plain["contains"]) for row, plain in pairs if row["answerable"]]
            same = sum(row["text"] == plain["text"] for row, plain in pairs)
            found.append(
                (
                    kind,
                    mode,
                    f"{level:,}",
                    str(len(group)),
                    f"{sum(row['contains'] for row in group)} of {sum(row['answerable'] for row in group)}",
                    str(sum(right for _, right in answered)),
                    f"{same / len(pairs):.3f}" if pairs else "–",
                    f"{sum(row['declined'] for row in group) / len(group):.3f}",
                    f"{sum(row.get('used_memory', True) for row in group) / len(group):.3f}",
                )
            )
    return found


def tables(rows: Sequence[dict[str, Any]]) -> list[tuple[Sequence[str], list[tuple[str, ...]]]]:
    """Every table of a run that has lines, each with its headings."""
    told = [row for row in rows if row.get("group") != COMMON]
    report = lines(told)
    every = [
        (HEADINGS, [cells(line) for line in report]),
        (GROUP_HEADINGS, [group_cells(name, line, told) for name, line in groups(told)]),
        (KIND_HEADINGS, kinds(report)),
        (COMMON_HEADINGS, common(rows)),
    ]
    return [(headings, found) for headings, found in every if found]


def as_cell(value: float | None) -> str:
    """A figure as a table shows it; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of a run's answers as Markdown."""
    return "\n\n".join(table(headings, found) for headings, found in tables(rows)) + "\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    shown = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def as_json(report: Sequence[Line]) -> list[dict[str, Any]]:
    """The figures for a script to read."""
    return [
        asdict(line)
        | {
            "found": {str(rank): asdict(figure) for rank, figure in line.found.items()},
            "abstention": line.abstention._asdict(),
            "seconds": round(line.seconds, 1),
        }
        for line in report
    ]


def groups_as_json(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures by what questions are about, for a script to read."""
    return [{"group": name, **figures} for name, line in groups(rows) for figures in as_json([line])]
