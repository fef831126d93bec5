"""Errors of the file system that leave a store or a vault as those of M+."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from mplus.errors import MemoryReadError, MPlusError

P = ParamSpec("P")
Result = TypeVar("Result")


def clear_errors(method: Callable[P, Result]) -> Callable[P, Result]:
    """Have a method of a store or vault raise ``MemoryReadError``, which says where, for a raw ``OSError``."""

    @wraps(method)
    def called(*arguments: P.args, **options: P.kwargs) -> Result:
        try:
            return method(*arguments, **options)
        except MPlusError:
            raise
        except OSError as error:
            place: Any = arguments[0]
            raise MemoryReadError(
                error.errno,
                f"{place.root}: the {place.kind} could not be reached ({error.strerror or error}). Try again, or check "
                "access; what is saved there is intact",
            ) from error

    return called
