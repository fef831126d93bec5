"""M+ beside every other way of answering, on several data sets: means, and how likely a difference is chance.

Questions are the same for all, so ways are compared pair by pair: McNemar's exact test of those that only one of the
two answers right.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from mplus.evaluation.metrics import is_short
from mplus.evaluation.report import Line, as_cell, lines, table
from mplus.evaluation.tasks import COMMON

Rows = Sequence[dict[str, Any]]
OURS = "mplus"


@dataclass(frozen=True)
class Paired:
    """Two ways of answering on the same questions.

    Attributes:
        mode: The other way.
        questions: How many both were asked.
        only_ours: Questions that only M+ answers right.
        only_other: Questions that only the other way answers right.
    """

    mode: str
    questions: int
    only_ours: int
    only_other: int

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test."""
        return mcnemar(self.only_ours, self.only_other)

    def __str__(self) -> str:
        return f"+{self.only_ours} −{self.only_other}, p = {self.p:.2g}"

    def __add__(self, other: "Paired") -> "Paired":
        questions, ours = self.questions + other.questions, self.only_ours + other.only_ours
        return Paired(self.mode, questions, ours, self.only_other + other.only_other)


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided exact p-value: how likely as uneven a split is, were either side as likely to be right alone."""
    total, fewer = only_one + only_other, min(only_one, only_other)
    return min(1.0, 2 * sum(comb(total, count) for count in range(fewer + 1)) / 2**total)


def judged(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers that contains-answer can judge: those to answerable questions with a short accepted answer."""
    return [r for r in rows if r["answerable"] and r["group"] != COMMON and any(map(is_short, r["accepted"]))]


def paired(rows: Rows, mode: str, level: int) -> Paired | None:
    """M+ and another way at a level; None where one of them was not asked."""
    mine = {row["id"]: row["contains"] for row in judged(rows) if (row["mode"], row["level"]) == (OURS, level)}
    its = {row["id"]: row["contains"] for row in judged(rows) if (row["mode"], row["level"]) == (mode, level)}
    both = mine.keys() & its.keys()
    if not both or mode == OURS:
        return None
    only_ours = sum(mine[name] and not its[name] for name in both)
    return Paired(mode, len(both), only_ours, sum(its[name] and not mine[name] for name in both))


@dataclass(frozen=True)
class Mean:
    """A way of answering over several data sets, each counted once.

    Attributes:
        mode: The way.
        sets: Data sets it was asked on.
        contains: Mean contains-answer of these with nothing in between.
        contains_far: The same at the highest level of each.
        f1: Mean token F1 there.
        found_far: Mean share of right sources found first there, of sets that search.
        against: All questions at these levels, beside M+'s answers.
    """

    mode: str
    sets: int
    contains: float | None
    contains_far: float | None
    f1: float | None
    found_far: float | None
    against: Paired | None


def means(answers: Mapping[str, Rows]) -> list[Mean]:
    """Means over data sets, for each way of answering; by name of the set, its raw answers."""
    reports = {name: lines(judged(rows)) for name, rows in answers.items()}
    modes = dict.fromkeys(line.mode for report in reports.values() for line in report)
    return [_mean(mode, answers, reports) for mode in modes]


def _mean(mode: str, answers: Mapping[str, Rows], reports: Mapping[str, Sequence[Line]]) -> Mean:
    near: list[Line] = []
    far: list[Line] = []
    against: Paired | None = None
    sets = 0
    for name, report in reports.items():
        mine = [line for line in report if line.mode == mode]
        if not mine:
            continue
        sets += 1
        near += [line for line in mine if line.level == 0]
        far.append(mine[-1])
        one = paired(answers[name], mode, mine[-1].level)
        against = one if against is None else against if one is None else against + one
    return Mean(
        mode,
        sets,
        _average([line.contains.mean for line in near if line.contains]),
        _average([line.contains.mean for line in far if line.contains]),
        _average([line.f1.mean for line in far if line.f1]),
        _average([line.found[1].mean for line in far if line.found]),
        against,
    )


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


MEAN_HEADINGS = (
    "mean over sets",
    "sets",
    "contains, nothing between",
    "contains, highest level",
    "F1",
    "source @1",
    "M+ against it",
)
SET_HEADINGS = ("data set", "tokens", "mode", "n", "contains", "F1", "source @1", "declined", "M+ against it")


def tables(answers: Mapping[str, Rows]) -> list[tuple[Sequence[str], list[tuple[str, ...]]]]:
    """The table of means and that of data sets, with their headings."""
    every = means(answers)
    most = max((mean.sets for mean in every), default=0)
    mean_rows = [
        (
            mean.mode,
            str(mean.sets) if mean.sets == most else f"{mean.sets} of {most}",
            *map(as_cell, (mean.contains, mean.contains_far, mean.f1, mean.found_far)),
            str(mean.against or "–"),
        )
        for mean in every
    ]
    set_rows = [row for name, rows in answers.items() for row in _set_rows(name, rows)]
    return [(headings, rows) for headings, rows in ((MEAN_HEADINGS, mean_rows), (SET_HEADINGS, set_rows)) if rows]


def _set_rows(name: str, rows: Rows) -> list[tuple[str, ...]]:
    by_answer = {(line.mode, line.level): line for line in lines(judged(rows))}
    found: list[tuple[str, ...]] = []
    for line in sorted(lines([row for row in rows if row["group"] != COMMON]), key=lambda line: line.level):
        of_answers = by_answer.get((line.mode, line.level))
        found.append(
            (
                name,
                f"{line.level:,}",
                line.mode,
                str(line.questions),
                str(of_answers.contains) if of_answers is not None else "–",
                as_cell(line.f1.mean if line.f1 else None),
                as_cell(line.found[1].mean if line.found else None),
                as_cell(line.abstention.recall),
                str(paired(rows, line.mode, line.level) or "–"),
            )
        )
    return found


def markdown(answers: Mapping[str, Rows]) -> str:
    """The tables as Markdown."""
    return "\n\n".join(table(headings, rows) for headings, rows in tables(answers)) + "\n"


def as_json(answers: Mapping[str, Rows]) -> dict[str, Any]:
    """Means and paired counts for a script to read."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for name, rows in answers.items():
        for line in lines(rows):
            one = paired(rows, line.mode, line.level)
            figure = {"mode": line.mode, "level": line.level, "questions": line.questions}
            figure |= {"contains": line.contains.mean if line.contains else None}
            figure |= {"f1": line.f1.mean if line.f1 else None}
            figure |= {"source_first": line.found[1].mean if line.found else None, "declined": line.abstention.recall}
            sets.setdefault(name, []).append(figure | {"against": _paired_json(one)})
    every = [asdict(mean) | {"against": _paired_json(mean.against)} for mean in means(answers)]
    return {"means": every, "sets": sets}


def _paired_json(one: Paired | None) -> dict[str, Any] | None:
    return None if one is None else asdict(one) | {"p": one.p}
