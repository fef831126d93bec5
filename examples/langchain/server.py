"""A chat server: many users at once, a memory for each, answers piece by piece.

    pip install 'mplus-memory[langchain,serve]'
    python examples/langchain/server.py
    curl localhost:8000/remember --json '{"user": "anna", "text": "My dog is called Biscuit."}'
    curl -N localhost:8000/chat --json '{"user": "anna", "text": "What is my dog called?"}'

Answers are lines of JSON: pieces of text, then what was recalled. Who closes the connection ends the answer.
In a service, take the user from the session and not from the request.
"""

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from langchain_core.messages import AIMessageChunk
from pydantic import BaseModel

import mplus
from mplus_integrations.langchain import MPlusChat


class Said(BaseModel):
    """Something that a user says or asks."""

    user: str
    text: str


def create_app(chat: MPlusChat) -> FastAPI:
    """The application, over a chat model with a store of memories."""
    app = FastAPI(title="A chat that remembers")

    @app.exception_handler(ValueError)
    async def refuse(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.exception_handler(mplus.QueueFullError)
    async def wait(_: Request, error: mplus.QueueFullError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=503)

    @app.post("/remember")
    async def remember(said: Said) -> dict[str, int]:
        return {"text_tokens": await chat.amemorize(said.text, memory_key=said.user)}

    @app.post("/chat")
    async def answer(said: Said) -> StreamingResponse:
        chunks = chat.astream(said.text, memory_key=said.user)
        first = await anext(chunks)  # what goes wrong before there is an answer gets a status of its own
        return StreamingResponse(lines(first, chunks), media_type="application/x-ndjson")

    return app


async def lines(first: AIMessageChunk, chunks: AsyncIterator[AIMessageChunk]) -> AsyncIterator[str]:
    """An answer as lines of JSON."""
    async with aclosing(chunks):  # type: ignore[type-var]
        chunk = first
        yield line(chunk)
        async for chunk in chunks:
            yield line(chunk)


def line(chunk: AIMessageChunk) -> str:
    """A piece of text, or, at the end, what was recalled."""
    found: dict[str, object] = {"text": chunk.content}
    if chunk.response_metadata.get("recalled") is not None:
        found["recalled"] = [source["source"] for source in chunk.response_metadata["recalled"]]
    return json.dumps(found, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=Path, default=Path("memories"), help="folder of the users' memories")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    model = mplus.MPlus.from_pretrained("smol-135m")
    with model.serve() as scheduler:  # requests of all users share the model's steps
        chat = MPlusChat(model=model, scheduler=scheduler, store=mplus.MemoryStore(options.memories), max_tokens=128)
        uvicorn.run(create_app(chat), port=options.port)


if __name__ == "__main__":
    main()
