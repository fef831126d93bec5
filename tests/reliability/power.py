"""Cut the power: what was not forced to disk is lost, in part, or there in another order.

    python -m tests.reliability.power FOLDER --cuts 400

A model of a disk follows every call. Names in a folder are safe once the folder was forced to disk, content once the
file was. At a cut, any part of the other names is there, and unsafe content is empty, cut or whole. What is found
then is the old or the new state; once the work has ended, it is the new one even if nothing unsafe is there.
Prints JSON.
"""

import argparse
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.reliability import states
from tests.reliability.scenes import Scene, copied

SCENES = ("first save", "save", "encrypted save", "delete", "copy", "export", "restore", "backup")


@dataclass(frozen=True)
class Change:
    """A change of one folder's names that is not forced to disk yet.

    Attributes:
        folder: The folder whose names change.
        do: Carries the change out on names: node by path; None is a folder.
    """

    folder: str
    do: Callable[[dict[str, int | None]], None]


class Disk:
    """A model of what is on disk below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.safe: dict[str, int | None] = {}
        self.content: dict[int, tuple[bytes, bool]] = {}
        """Bytes of each node, and whether they are forced to disk."""
        for path in sorted(root.rglob("*")):
            self.safe[str(path)] = None if path.is_dir() else self.node(path.read_bytes(), safe=True)
        self.names, self.unsafe = dict(self.safe), list[Change]()
        self._is_followed = True

    def node(self, content: bytes, *, safe: bool) -> int:
        """A new file without a name."""
        self.content[len(self.content)] = (content, safe)
        return len(self.content) - 1

    def change(self, path: object, do: Callable[[dict[str, int | None]], None]) -> None:
        """Note a change of a name."""
        if Path(str(path)).is_relative_to(self.root):
            do(self.names)
            self.unsafe.append(Change(str(Path(str(path)).parent), do))

    def force(self, path: str) -> None:
        """What fsync of a file or folder makes safe."""
        if Path(path).is_dir():
            for change in [one for one in self.unsafe if one.folder == path]:
                change.do(self.safe)
                self.unsafe.remove(change)
        elif (node := self.names.get(path)) is not None:
            self.content[node] = (Path(path).read_bytes(), True)

    def cut(self, target: Path, rng: random.Random, *, lose_all: bool = False) -> None:
        """Write what may be on disk after a cut."""
        names = dict(self.safe)
        for change in self.unsafe:
            if not lose_all and rng.random() < 0.5:
                change.do(names)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in sorted(names):
            path, node = target / Path(name).relative_to(self.root), names[name]
            if not path.parent.is_dir():
                continue  # its folder is not there
            if node is None:
                path.mkdir(exist_ok=True)
                continue
            content, safe = self.content[node]
            path.write_bytes(content if safe else content[: rng.choice((0, len(content) // 2, len(content)))])

    @contextmanager
    def followed(self, after_each: Callable[[], None]) -> Generator[None]:
        """Follow the calls in this block; ``after_each`` is called after every one."""
        calls = ("open", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir")
        real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in calls}

        def noted(name: str, *given: Any, **options: Any) -> Any:
            if not self._is_followed:
                return real[name](*given, **options)
            fresh = name == "open" and given[1] & os.O_CREAT and not os.path.lexists(given[0])
            path = os.readlink(f"/proc/self/fd/{given[0]}") if name == "fsync" else str(given[0])
            if "dir_fd" in options and options["dir_fd"] is not None:
                path = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
            found = real[name](*given, **options)
            if name == "fsync":
                self.force(path)
            elif name in ("replace", "rename"):
                self.moved(path, str(given[1]))
            elif name == "link" or fresh:
                node = self.names.get(path) if name == "link" else self.node(b"", safe=False)
                other = str(given[1]) if name == "link" else path
                self.change(other, lambda names: names.__setitem__(other, node))
            elif name in ("unlink", "rmdir"):
                self.change(path, lambda names: names.pop(path, None) and None)
            elif name == "mkdir":
                self.change(path, lambda names: names.__setitem__(path, None))
            after_each()
            return found

        for name in real:
            setattr(os, name, lambda *given, name=name, **options: noted(name, *given, **options))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)

    @contextmanager
    def not_followed(self) -> Generator[None]:
        """Calls in this block are ours, not those of the work."""
        self._is_followed = False
        try:
            yield
        finally:
            self._is_followed = True

    def moved(self, old: str, new: str) -> None:
        """A file or folder has another name."""

        def do(names: dict[str, int | None]) -> None:
            for name in [one for one in names if one == new or one.startswith(new + "/")]:
                del names[name]
            for name in [one for one in names if one == old or one.startswith(old + "/")]:
                names[new + name[len(old) :]] = names.pop(name)

        # What is written to it before is not followed call by call: it counts as of now.
        node = self.names.get(old)
        if node is not None and not self.content[node][1] and Path(new).is_file():
            self.content[node] = (Path(new).read_bytes(), False)
        self.change(new, do)


class Cuts:
    """Cuts of the power during one scene.

    Attributes:
        outcomes: How often the old and the new state were found.
        wrong: What should not have been found.
    """

    def __init__(self, scene: Scene, root: Path, rng: random.Random) -> None:
        self.scene, self.root, self.rng = scene, root, rng
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        scene.prepare(root / scene.name)

    def run(self, cuts: int) -> None:
        """Cut at so many random calls, and once after the last one."""
        total = self.acted(at=-1)
        for at in sorted(self.rng.randrange(1, total + 1) for _ in range(cuts)):
            self.acted(at)
            self.look(f"call {at} of {total}")
        disk = Disk(copied(self.root / self.scene.name, self.root / "tried"))
        with disk.followed(lambda: None):
            self.scene.act(disk.root)
        disk.cut(self.root / "after", self.rng, lose_all=True)
        self.look("once it had ended", ended=True)

    def acted(self, at: int) -> int:
        """Do it all, with the disk as it may be after call ``at`` in a folder beside; returns the number of calls."""
        disk = Disk(copied(self.root / self.scene.name, self.root / "tried"))
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                with disk.not_followed():
                    disk.cut(self.root / "after", self.rng)

        with disk.followed(count):
            self.scene.act(disk.root)
        return calls

    def look(self, when: str, *, ended: bool = False) -> None:
        """See what is found on the disk after a cut."""
        name, scene = self.scene.name, self.scene
        try:
            found = scene.found(self.root / "after")
        except Exception as error:
            self.wrong.append(f"{name}, {when}: {error!r:.300}")
            return
        outcome = "new" if found == scene.new else "old" if found == scene.old else "mixture"
        self.outcomes[outcome] += 1
        if outcome == "mixture" or (ended and outcome != "new"):
            self.wrong.append(f"{name}, {when}: {outcome}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cuts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root, rng, model = arguments.folder.resolve(), random.Random(arguments.seed), states.model()
    every = [Cuts(Scene(name, model), root, rng) for name in SCENES]
    for one in every:
        one.run(max(arguments.cuts // len(SCENES), 1))
    outcomes = {one.scene.name: dict(one.outcomes) for one in every}
    print(json.dumps({"outcomes": outcomes, "wrong": [problem for one in every for problem in one.wrong]}))


if __name__ == "__main__":
    main()
