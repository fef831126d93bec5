"""`python -m mplus.training.talk`: check files of the corpus, show them filled in, list the types of slots."""

import argparse
import json
import random
import sys
from pathlib import Path

from mplus.training.talk.blind import blind_questions, disagreements
from mplus.training.talk.checks import problems_of, read_all
from mplus.training.talk.corpus import DATA
from mplus.training.talk.format import Item, read_items
from mplus.training.talk.slot_types import TYPES
from mplus.training.talk.slots import as_written, drawn
from mplus.training.talk.variety import report


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit status is 1 if there is something to mend."""
    parser = argparse.ArgumentParser(prog="python -m mplus.training.talk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what to mend in files, and how varied they are")
    check.add_argument("files", nargs="*", type=Path, help="default: every file of the corpus")
    check.add_argument("--notes", action="store_true", help="also what only asks for a second look")
    show = commands.add_parser("show", help="the items of a file with their slots filled in")
    show.add_argument("file", type=Path)
    show.add_argument("--seed", type=int, help="draw values from this seed; default: as written")
    blind = commands.add_parser("blind", help="questions for a second writer, each with the messages it needs")
    blind.add_argument("file", type=Path)
    blind.add_argument("--answers", type=Path, help="what the second writer said; prints where the two differ")
    commands.add_parser("types", help="types of slots, with examples")
    parsed = parser.parse_args(arguments)
    if parsed.command == "check":
        return _check(parsed.files or sorted(DATA.glob("*.jsonl")), parsed.notes)
    if parsed.command == "show":
        return _show(parsed.file, parsed.seed)
    if parsed.command == "blind":
        return _blind(parsed.file, parsed.answers)
    for name in sorted(TYPES):
        print(f"{name:<24} {TYPES[name].example}")
    return 0


def _check(files: list[Path], notes: bool) -> int:
    items, found = read_all(files)
    found += problems_of(items)
    for problem in found:
        if notes or not problem.is_note:
            print(problem)
    print(report(items))
    problems = sum(not problem.is_note for problem in found)
    print(f"\n{len(items)} items, {problems} problems, {len(found) - problems} notes (--notes shows them)")
    return 1 if problems else 0


def _show(file: Path, seed: int | None) -> int:
    rng = random.Random(seed)
    for item in read_items(file):
        print(_shown(as_written(item) if seed is None else drawn(item, rng)), end="\n\n")
    return 0


def _blind(file: Path, answers: Path | None) -> int:
    items = read_items(file)
    if answers is None:
        for asked in blind_questions(items):
            print(json.dumps(asked, ensure_ascii=False))
        return 0
    found = list(disagreements(items, answers))
    print("\n".join([*found, f"{len(found)} of {sum(len(item.ask) for item in items)} answered otherwise"]))
    return 1 if found else 0


def _shown(item: Item) -> str:
    told = [f"{i:>3} {message.role:<9} {message.text}" for i, message in enumerate(item.told)]
    asked = [
        f"  ? {q.q}  [{q.kind}, after {q.after}, needs {list(q.needs)}] -> {' | '.join(q.short)} -- {q.full}"
        for q in item.ask
    ]
    return "\n".join([f"{item.id} ({item.kind})", *told, *asked, *(f"  - {q}" for q in item.unknown)])


if __name__ == "__main__":
    sys.exit(main())
