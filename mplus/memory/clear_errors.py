"""Errors of the file system that leave a store as those of M+."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from mplus.errors import MemoryReadError, MPlusError

P = ParamSpec("P")
Result = TypeVar("Result")


def clear_errors(method: Callable[P, Result]) -> Callable[P, Result]:
    """Have a method of a store raise ``MemoryReadError``, which says where and what to do, for a raw ``OSError``."""

    @wraps(method)
    def called(*arguments: P.args, **options: P.kwargs) -> Result:
        try:
            return method(*arguments, **options)
        except MPlusError:
            raise
        except OSError as error:
            store: Any = arguments[0]
            raise MemoryReadError(
                error.errno,
                f"{store.root}: the store could not be reached ({error.strerror or error}). Try again, or check "
                "access; what is saved there is intact",
            ) from error

    return called
