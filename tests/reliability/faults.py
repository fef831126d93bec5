"""Let every call to the file system fail once, one after the other, and look what is left.

    python -m tests.reliability.faults FOLDER --every 1

A call that fails is a clear error, or one that does not matter; what is found afterwards is the old or the new state,
and the new one if nothing was raised. Prints JSON.
"""

import argparse
import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mplus import MPlusError
from mplus.memory import url_store
from tests.reliability import states
from tests.reliability.bucket import Bucket
from tests.reliability.scenes import SCENES, Scene, copied

CALLS = ("open", "fdopen", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "scandir", "utime")
LOOKS = ("stat", "lstat", "listdir")
"""Calls that are counted only within the folder: everybody makes them."""


class Faults:
    """Counts the calls within a folder, and lets one of them fail."""

    def __init__(self, at: int, root: Path | None = None) -> None:
        self._at, self._root, self.count, self.failed = at, root, 0, ""

    def call(self, name: str) -> None:
        """Note a call; raise if it is the one to fail."""
        self.count += 1
        if self.count - 1 == self._at:
            self.failed = name
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _counts(self, anywhere: bool, path: str) -> bool:
        """Whether a call may fail: one that is made anywhere, or one within the folder."""
        is_within = self._root is not None and Path(path).is_relative_to(self._root)
        return (anywhere or is_within) and not path.endswith((".lock", ".pyc"))

    @contextmanager
    def injected(self) -> Generator[None]:
        """Let calls in this block pass by here."""
        real = {(os, name): getattr(os, name) for name in (*CALLS, *LOOKS)} | {(io, "open"): io.open}

        def through(module: Any, name: str) -> Callable[..., Any]:
            function = real[module, name]

            def called(*arguments: Any, **options: Any) -> Any:
                if self._counts(module is os and name in CALLS, str(arguments[0] if arguments else "")):
                    self.call(name)
                found = function(*arguments, **options)
                return Failing(found, self) if name == "fdopen" else found

            return called

        def asked(when: str, request: str, _: str) -> None:
            self.call(f"{request} {when}")

        real_asked, Bucket.asked = Bucket.asked, staticmethod(asked)
        for module, name in real:
            setattr(module, name, through(module, name))
        try:
            yield
        finally:
            Bucket.asked = staticmethod(real_asked)
            for (module, name), function in real.items():
                setattr(module, name, function)


class Failing:
    """A file whose reads and writes may fail."""

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

    def read(self, *given: Any) -> Any:
        """Read, unless this is the call to fail."""
        self._faults.call("read")
        return self._file.read(*given)


def tried(scene: Scene, root: Path, at: int) -> tuple[str, str, str]:
    """Which call failed, what happened, and what is wrong with that; no call if there are no more."""
    faults, raised = Faults(at, root), None
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
    parser.add_argument("--scenes", nargs="*", default=SCENES)
    arguments = parser.parse_args()
    root, model = arguments.folder.resolve(), states.model()
    url_store.LEASE_SECONDS = 0.2  # one that could not be given back is waited for
    outcomes: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for name in arguments.scenes:
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
