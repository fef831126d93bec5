"""Errors of prompts and forms end an answer that LlamaIndex's own synthesizers make."""

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

from llama_index.core.response_synthesizers import BaseSynthesizer, Refine


def raising(synthesizer: BaseSynthesizer) -> BaseSynthesizer:
    """A synthesizer whose errors end the answer.

    LlamaIndex's ``Refine`` logs what a prompt or a form raises, and says "Empty Response", as if nothing was found.
    """
    if isinstance(synthesizer, Refine):
        vars(synthesizer).update(
            _update_response=MethodType(_updated, synthesizer), _aupdate_response=MethodType(_aupdated, synthesizer)
        )
    return synthesizer


class _Watched:
    """A program of a ``Refine`` that keeps its error."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self.error: Exception | None = None

    @contextmanager
    def _watching(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    def __call__(self, **options: Any) -> Any:
        with self._watching():
            return self._program(**options)

    async def acall(self, **options: Any) -> Any:
        with self._watching():
            return await self._program.acall(**options)

    def stream_call(self, **options: Any) -> Generator[Any]:
        with self._watching():
            yield from self._program.stream_call(**options)

    async def astream_call(self, **options: Any) -> AsyncGenerator[Any, None]:
        with self._watching():
            pieces = await self._program.astream_call(**options)

        async def watched() -> AsyncGenerator[Any, None]:
            with self._watching():
                async for piece in pieces:
                    yield piece

        return watched()


def _updated(self: Refine, program: Any, program_kwargs: dict[str, Any], response_kwargs: dict[str, Any]) -> Any:
    watched = _Watched(program)
    found = Refine._update_response(self, cast("Any", watched), program_kwargs, response_kwargs)
    if watched.error is not None:
        raise watched.error
    return found


async def _aupdated(self: Refine, program: Any, program_kwargs: dict[str, Any], response_kwargs: dict[str, Any]) -> Any:
    watched = _Watched(program)
    found = await Refine._aupdate_response(self, cast("Any", watched), program_kwargs, response_kwargs)
    if watched.error is not None:
        raise watched.error
    return found
