"""A folder that behaves like an object store of S3's kind, for processes of one machine: ``objects:///path``.

An object is put whole or not at all, and an exchange compares at the moment of the exchange (If-Match, If-None-Match),
under a lock that ends with the process that holds it. So what several machines do behind a url is measured without a
network. ``file://`` will not do: a process that is killed there leaves half a file.
"""

import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

LOCK = ".exchanging"
TEMPORARY = ".putting-"


class ObjectFolder(AbstractFileSystem):
    """Objects by their path; folders are there while something is in them."""

    protocol = ("objects", "s3")  # as S3 it is given the conditions of an exchange
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.partition("://")[2].strip("/") if "://" in path else "/" + path.strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        shown: list[dict[str, Any]] = []
        for one in sorted(Path(self._strip_protocol(path)).iterdir()):
            with suppress(FileNotFoundError):  # somebody has just removed it
                shown += [] if one.name.startswith((LOCK, TEMPORARY)) else [self.info(str(one))]
        return shown if detail else [about["name"] for about in shown]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        where = Path(self._strip_protocol(path))
        if where.is_dir():
            return {"name": str(where), "size": 0, "type": "directory"}
        content = where.read_bytes()
        about = {"name": str(where), "size": len(content), "type": "file", "LastModified": where.stat().st_mtime}
        return about | {"ETag": hashlib.md5(content).hexdigest()}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Path(self._strip_protocol(path)).mkdir(parents=True, exist_ok=exist_ok)

    def rm_file(self, path: str) -> None:
        Path(self._strip_protocol(path)).unlink()

    def pipe_file(
        self,
        path: str,
        value: bytes,
        mode: str = "overwrite",
        IfMatch: str | None = None,
        IfNoneMatch: str | None = None,
        **_: Any,
    ) -> None:
        where = Path(self._strip_protocol(path))
        with _exchanging(where.parent):
            present = self.info(path)["ETag"] if where.exists() else None
            if present is not None and (mode == "create" or IfNoneMatch == "*"):
                raise FileExistsError(f"{path}: PreconditionFailed")
            if IfMatch is not None and IfMatch != present:
                raise OSError(f"{path}: PreconditionFailed")
            descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=where.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(value)
            os.replace(temporary, where)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return _Upload(self, path) if "w" in mode else Path(self._strip_protocol(path)).open("rb")


class _Upload(io.BytesIO):
    """An object that is there once it is closed."""

    def __init__(self, files: ObjectFolder, path: str) -> None:
        super().__init__()
        self._files, self._path = files, path

    def close(self) -> None:
        if not self.closed:
            self._files.pipe_file(self._path, self.getvalue())
        super().close()


@contextmanager
def _exchanging(folder: Path) -> Generator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def register() -> None:
    """Have this process know ``objects://``."""
    fsspec.register_implementation("objects", ObjectFolder, clobber=True)
