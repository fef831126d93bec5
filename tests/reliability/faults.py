"""Let every call to the file system fail once, one after the other, and look what is left.

    python -m tests.reliability.faults FOLDER --every 1

A call that fails is a clear error, or one that does not matter; what is found afterwards is the old or the new state,
and the new one if nothing was raised. Prints JSON.
"""

import argparse
import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mplus import MPlusError
from tests.reliability import states
from tests.reliability.scenes import SCENES, Scene, copied

CALLS = ("open", "fdopen", "fsync", "replace", "rename", "link", "unlink", "mkdir", "scandir", "utime", "write")


class Faults:
    """Counts the calls within a folder, and lets one of them fail."""

    def __init__(self, at: int) -> None:
        self._at, self.count, self.failed = at, 0, ""

    def call(self, name: str) -> None:
        """Note a call; raise if it is the one to fail."""
        self.count += 1
        if self.count - 1 == self._at:
            self.failed = name
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    @contextmanager
    def injected(self) -> Generator[None]:
        """Let calls in this block pass by here."""
        real = {name: getattr(os, name) for name in CALLS if name != "write"}

        def through(name: str) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                if not str(arguments[0] if arguments else "").endswith((".lock", ".pyc")):
                    self.call(name)
                found = real[name](*arguments, **options)
                return Failing(found, self) if name == "fdopen" and "w" in str(arguments[1:]) else found

            return called

        for name in real:
            setattr(os, name, through(name))
        try:
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)


class Failing:
    """A file whose writes may fail."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Failing":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def write(self, data: Any) -> int:
        """Write, unless this is the call to fail."""
        self._faults.call("write")
        return self._file.write(data)


def tried(scene: Scene, root: Path, at: int) -> tuple[str, str, str]:
    """Which call failed, what happened, and what is wrong with that; no call if there are no more."""
    faults, raised = Faults(at), None
    with faults.injected():
        try:
            scene.act(root)
        except MPlusError as error:
            raised = error
        except Exception as error:
            return faults.failed or "?", "raw", f"{error!r:.200}"
    if not faults.failed:
        return "", "", ""
    try:
        found = scene.found(root)
    except Exception as error:
        return faults.failed, "lost", f"{error!r:.200}, after {raised!r:.200}"
    if found not in (scene.old, scene.new):
        return faults.failed, "mixture", f"after {raised!r:.200}"
    if raised is None and found != scene.new:
        return faults.failed, "lost", "nothing was raised"
    return faults.failed, "new" if found == scene.new else "old", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="Let only every so many-th call fail.")
    arguments = parser.parse_args()
    root, model = arguments.folder, states.model()
    outcomes: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for name in SCENES:
        scene = Scene(name, model)
        scene.prepare(root / name)
        outcomes[name] = Counter()
        for at in range(len(name) % arguments.every, 10_000, arguments.every):
            failed, outcome, problem = tried(scene, copied(root / name, root / "tried"), at)
            if not failed:
                break
            outcomes[name][outcome] += 1
            if problem:
                wrong.append(f"{name}, call {at} ({failed}): {outcome}: {problem}")
    print(json.dumps({"outcomes": outcomes, "wrong": wrong}))


if __name__ == "__main__":
    main()
