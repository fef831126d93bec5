"""Sync work behind async doors: it runs in a thread of ours, and the event loop only waits.

A pool of its own, because the loop's default one is small and also resolves host names: a few slow answers
there would hold up everything else an application does.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = ThreadPoolExecutor(max_workers=64, thread_name_prefix="mplus")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread, with the caller's context variables."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)


async def answered(work: Callable[[threading.Event], T]) -> T:
    """What work gives that runs in a thread; the event it is given is set as soon as nobody waits for it any more."""
    left = threading.Event()
    try:
        return await in_thread(work, left)
    finally:
        left.set()


async def streamed(make: Callable[[threading.Event], Generator[T]]) -> AsyncGenerator[T]:
    """The items of a generator that runs, from its first to its last line, in one thread.

    Args:
        make: Makes the generator; called in the thread, with an event that is set as soon as nobody listens any
            more. Whatever the generator waits for should look at it.
    """
    left = threading.Event()
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def tell(item: tuple[T] | BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # the loop was closed in the meantime
            left.set()

    def work() -> None:
        last: BaseException | None = None
        try:
            if left.is_set():  # while this waited for a thread
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
