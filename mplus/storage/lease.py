"""A lease on a folder behind a url: a file that says who writes there, and until when."""

import json
import math
import secrets
import time
from typing import Any, ClassVar

from mplus.errors import MemoryLockedError

LEASE_SECONDS = 120.0
POLL_SECONDS = 0.2
MAX_LEASE_BYTES = 4096


class Lease:
    """The right to write for a while, renewed as long as files are written, and free again if the writer dies.

    The file is made only if there is none, in one step where the file system can do that (S3, GCS, Azure and others).
    Machines whose clocks differ by minutes may take each other's lease for ended. Whatever the clocks say, one that
    nobody has renewed for as long as it lasts has ended: its writer may have had a clock that was years ahead.

    Args:
        files: The ``fsspec`` file system.
        path: Where the lease is.
        place: What it is on, for messages.
        seconds: How long it lasts unless it is renewed.
    """

    _watched: ClassVar[dict[str, tuple[tuple[str, float], float]]] = {}
    """Leases of others that this process waited for, as it found them first, and when; also over several tries."""

    def __init__(self, files: Any, path: str, place: str, seconds: float = LEASE_SECONDS) -> None:
        self._files, self._path, self._place, self._seconds = files, path, place, seconds
        self._holder, self._renewed = secrets.token_hex(16), -math.inf

    def take(self, timeout: float) -> None:
        """Take the lease once nobody else has it.

        Raises:
            MemoryLockedError: Somebody has it for more than ``timeout`` seconds.
            OSError: The file system cannot be reached.
        """
        ends = time.monotonic() + timeout
        while not self._made():
            holder, until = present = self._present()
            left = min(until - time.time(), self._left_unrenewed(present))
            if left < 0:
                self._remove(holder)
            elif time.monotonic() >= ends:
                raise MemoryLockedError(
                    f"{self._place}: another save was still running after {timeout:g} s. Try again later; if its "
                    f"process died, in {left:.0f} s."
                )
            else:
                time.sleep(min(POLL_SECONDS, max(ends - time.monotonic(), 0.0)))
        self._watched.pop(self._place, None)

    def renew(self) -> None:
        """Take the lease for longer if a third of its time is over.

        Raises:
            MemoryLockedError: It had ended, as after a pause of the machine, and somebody else has it.
        """
        if time.monotonic() > self._renewed + self._seconds / 3:
            if self._present()[0] not in ("", self._holder):
                raise MemoryLockedError(
                    f"{self._place}: this save took so long between two files that its lease ended, and another save "
                    "began. What was saved there before is intact. Save again."
                )
            self._files.pipe_file(self._path, self._text())

    def give_back(self) -> None:
        """End the lease if it is still ours."""
        self._remove(self._holder)

    def _made(self) -> bool:
        try:
            self._files.pipe_file(self._path, self._text(), mode="create")
        except FileExistsError:
            return False
        except TypeError:  # a file system that cannot make a file only if there is none
            if self._present()[0]:
                return False
            self._files.pipe_file(self._path, self._text())
        except Exception:
            if not self._present()[0]:  # else it was made and the answer lost, or this is how it says that there is one
                raise
        return self._present()[0] == self._holder  # two may have made it at once where that is not one step

    def _left_unrenewed(self, present: tuple[str, float]) -> float:
        """Seconds until somebody's lease has ended because it stayed as it is."""
        now = time.monotonic()
        known, since = self._watched.get(self._place, (present, now))
        if known != present:
            since = now
        self._watched[self._place] = present, since
        return since + self._seconds - now

    def _text(self) -> bytes:
        self._renewed = time.monotonic()
        return json.dumps({"holder": self._holder, "until": time.time() + self._seconds}).encode()

    def _present(self) -> tuple[str, float]:
        """Who has the lease, and until when; one that cannot be read has ended."""
        try:
            known = json.loads(self._files.cat_file(self._path, start=0, end=MAX_LEASE_BYTES))
            until = float(known["until"])
            return str(known["holder"]), until if math.isfinite(until) else 0.0
        except FileNotFoundError:
            return "", 0.0
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return "unreadable", 0.0

    def _remove(self, holder: str) -> None:
        if self._present()[0] == holder != "":
            self._files.rm_file(self._path)
