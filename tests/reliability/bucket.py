"""A file system behind a url that outlives processes, as an object store does: a folder, whose files change in one step."""

import os
import secrets
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

URL = "bucket://memories"
ROOT = "MPLUS_TEST_BUCKET"
"""The environment variable that says where the folder is."""


class Bucket(AbstractFileSystem):
    """Objects by name. ``asked`` is called before and after every request, with what it is and on which object."""

    protocol = "bucket"
    cachable = False

    @staticmethod
    def asked(when: str, request: str, path: str) -> None:
        """Nothing; scripts that count requests or let them fail replace this."""

    def _at(self, path: str) -> Path:
        return Path(os.environ[ROOT]) / str(self._strip_protocol(path)).strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What is in a folder."""
        self.asked("before", "ls", path)
        folder = self._at(path)
        if not folder.is_dir():
            raise FileNotFoundError(path)
        found = [self._about(one) for one in sorted(folder.iterdir()) if not one.name.startswith(".new-")]
        self.asked("after", "ls", path)
        return found if detail else [about["name"] for about in found]

    def _about(self, path: Path) -> dict[str, Any]:
        name = "/".join(path.relative_to(os.environ[ROOT]).parts)
        known = path.stat()
        kind = "directory" if path.is_dir() else "file"
        return {"name": name, "size": known.st_size, "type": kind, "mtime": known.st_mtime}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What is known of an object."""
        if not (at := self._at(path)).exists():
            raise FileNotFoundError(path)
        return self._about(at)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """An object store has no folders to make."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The content of an object."""
        self.asked("before", "cat_file", path)
        found = self._at(path).read_bytes()[start:end]
        self.asked("after", "cat_file", path)
        return found

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object in one step."""
        self.asked("before", "pipe_file", path)
        at = self._at(path)
        at.parent.mkdir(parents=True, exist_ok=True)
        new = at.with_name(f".new-{secrets.token_hex(4)}")
        new.write_bytes(value)
        if mode == "create":
            try:
                os.link(new, at)
            finally:
                new.unlink()
        else:
            new.replace(at)
        self.asked("after", "pipe_file", path)

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self.asked("before", "rm_file", path)
        self._at(path).unlink()
        self.asked("after", "rm_file", path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "r" in mode:
            self.asked("before", "open", path)
            return self._at(path).open("rb")
        return _Upload(self, path)


class _Upload:
    """An object that is there once it is closed."""

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket, self._path, self._parts = bucket, path, bytearray()

    def write(self, data: Any) -> int:
        """Collect bytes."""
        self._parts += memoryview(data).cast("B")
        return len(memoryview(data).cast("B"))

    def __enter__(self) -> "_Upload":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._bucket.pipe_file(self._path, bytes(self._parts))


fsspec.register_implementation("bucket", Bucket, clobber=True)
