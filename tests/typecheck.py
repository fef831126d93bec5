"""The run-time type checker of the test run: an int is welcome where a float is.

For the shapes of a call jaxtyping binds its arguments and checks them twice. Most functions name no shape: beartype
checks those alone, after which a call of a tiny model takes about half as long.
"""

import dataclasses
import functools
import inspect
import threading
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_alone = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))
_with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """What the hook decorates every function and class of the package with, in place of jaxtyping's own."""

    def decorate(given: Any) -> Any:
        if not inspect.isclass(given):
            if not _names_no_shape(given):
                return _with_shapes(given, typechecker=typechecker)
            return _inner(given) if "<locals>" in given.__qualname__ else _alone(given)
        own = vars(given).get("__init__")
        if not dataclasses.is_dataclass(given) or own is None or not _names_no_shape(own):
            return _with_shapes(given, typechecker=typechecker)
        given.__init__ = _alone(own)
        return given

    return decorate


def _inner(given: types.FunctionType) -> Callable[..., Any]:
    """The same for a function within another: one check serves all that its lines make.

    The check hands what passed to the function of this call, which waits in a variable of the thread.
    """
    key = (given.__code__, *given.__annotations__.values())
    try:
        check = _CHECKS.get(key)
    except TypeError:  # a hint without a hash
        return _alone(given)
    if check is None:

        @functools.wraps(given)
        def passed(*arguments: Any, **named: Any) -> Any:
            return _CALLED.waiting.pop()(*arguments, **named)

        check = _CHECKS[key] = _alone(passed)

    @functools.wraps(given)
    def called(*arguments: Any, **named: Any) -> Any:
        if not hasattr(_CALLED, "waiting"):
            _CALLED.waiting = []
        _CALLED.waiting.append(given)
        count = len(_CALLED.waiting)
        try:
            return check(*arguments, **named)
        finally:
            del _CALLED.waiting[count - 1 :]  # where the arguments did not pass

    return called


_CHECKS: dict[Any, Callable[..., Any]] = {}
_CALLED = threading.local()


def _names_no_shape(given: Any) -> bool:
    """Whether beartype alone checks as much of a function as jaxtyping does with it."""
    if not isinstance(given, types.FunctionType) or given.__code__.co_flags & _MAKES_SOMETHING_LAZY:
        return False
    return all(map(_is_plain, given.__annotations__.values()))


_MAKES_SOMETHING_LAZY = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is_plain(hint: Any) -> bool:
    """Whether a type has no shape in it, and no name that only jaxtyping looks up in time."""
    if isinstance(hint, (str, typing.ForwardRef)):
        return False
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return False
    return all(map(_is_plain, hint if isinstance(hint, list) else typing.get_args(hint)))


jaxtyping.jaxtyped = jaxtyped
