"""Time as one memory counts it, so that a machine's clock that is set wrong neither deletes what is young nor keeps
what is old.
"""

from dataclasses import dataclass

YEAR = 366 * 86_400.0


@dataclass(frozen=True)
class MemoryClock:
    """Counts the time that passes between two looks at the machine's clock.

    A step back counts as no time. A step ahead of more than a year beyond the age limit does not either: so long
    nobody leaves a memory alone, while a machine whose clock was reset often jumps by decades. All other steps count,
    so that whatever the clock was set to meanwhile, a text gets older by the time that has passed since. Only where a
    clock was set back and a later step ends beyond where it was, that step puts it right: the time that the clock was
    set back by is not counted.
    """

    seen: float
    """Unix time that the machine's clock showed last."""
    behind: float = 0.0
    """Seconds that the memory's time is behind the machine's."""

    @property
    def time(self) -> float:
        """The memory's time: Unix time, as long as the machine's clock never jumped. Never falls."""
        return self.seen - self.behind

    def at(self, now: float, age_limit: float) -> "MemoryClock":
        """The clock once the machine's clock shows ``now``.

        Args:
            now: Unix time.
            age_limit: Seconds after which the memory forgets.
        """
        step = now - self.seen
        if not 0 <= step <= age_limit + YEAR:
            return MemoryClock(now, self.behind + step)
        # Set back once, and now as late as it would be if it never had been: it was put right.
        return MemoryClock(now, 0.0 if self.behind < 0 and step >= -self.behind else self.behind)

    @classmethod
    def after(cls, saved: float, newest: float) -> "MemoryClock":
        """The clock of a memory that an earlier version saved.

        Args:
            saved: Unix time of the save.
            newest: Time of its newest text, which a clock that was set wrong may have put into the future.
        """
        return cls(saved, min(saved - newest, 0.0))
