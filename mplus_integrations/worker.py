"""Runs synchronous work in a thread pool of our own while the event loop waits.

The loop's default pool is small and also resolves host names, so a few slow answers in it would delay the rest
of the application. An answer holds its thread while it waits for its turn, so there are more threads than waiting
answers; each begins when it is needed.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from mplus.forks import renewed_after_fork

MOST_THREADS = 1024
P = ParamSpec("P")
T = TypeVar("T")


class _Threads:
    """The pool; a forked process, which has none of its parent's threads and would wait for them, has a new one."""

    def __init__(self) -> None:
        self.after_fork()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin without threads."""
        self.pool = ThreadPoolExecutor(max_workers=MOST_THREADS, thread_name_prefix="mplus")


_THREADS = _Threads()


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread, with the caller's context variables."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS.pool, call)


async def answered(work: Callable[[threading.Event], T]) -> T:
    """The result of work in a thread. The event passed to it is set when the caller stops waiting."""
    left = threading.Event()
    try:
        return await in_thread(work, left)
    finally:
        left.set()


async def streamed(make: Callable[[threading.Event], Generator[T]]) -> AsyncGenerator[T]:
    """The items of a generator, all of which runs in one thread.

    Args:
        make: Makes the generator; called in the thread with an event that is set when the consumer stops. The
            generator should watch it.
    """
    left = threading.Event()
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def tell(item: tuple[T] | BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop has been closed
            left.set()

    def work() -> None:
        last: BaseException | None = None
        try:
            if left.is_set():  # the consumer stopped before a thread was free
                return
            items = make(left)
            try:
                for item in items:
                    tell((item,))
                    if left.is_set():
                        break
            finally:
                items.close()
        except BaseException as error:
            last = error
        finally:
            tell(last)

    working = asyncio.ensure_future(in_thread(work))
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        left.set()
        await asyncio.shield(working)
