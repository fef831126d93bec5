"""The endpoints of memories, under /v1/memories: list, write, search, forget, history, files."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask

from mplus_integrations.server.access import may_open, may_read
from mplus_integrations.server.memories import Item, Times, scratch_path
from mplus_integrations.server.memories_wire import (
    ActivityBody,
    Forgetting,
    Labelled,
    NewMemory,
    OfSnapshot,
    OfSource,
    Recalling,
    Replacing,
    Searching,
    SentFiles,
    Writing,
)
from mplus_integrations.server.problems import Problem
from mplus_integrations.server.routes import Route
from mplus_integrations.server.service import Question, Service
from mplus_integrations.server.wire import to_chat
from mplus_integrations.worker import in_thread

Json = dict[str, Any]
BINARY: Json = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}
A_FILE: dict[int | str, Json] = {
    200: {"content": {"application/octet-stream": {}}, "description": "A portable memory."}
}


def memory_routes(service: Service) -> APIRouter:
    """All endpoints of memories."""
    routes = APIRouter(prefix="/v1/memories", tags=["memories"], route_class=Route)
    _add_whole(routes, service)
    _add_writing(routes, service)
    _add_reading(routes, service)
    _add_history(routes, service)
    _add_files(routes, service)
    return routes


def _add_whole(routes: APIRouter, service: Service) -> None:
    @routes.get("")
    async def list_memories(request: Request) -> Json:
        """The memories that the key opens."""
        found = await service.operate("list", None, service.memories.list)
        return {"memories": [one for one in found if request.state.caller.opens(one["name"])]}

    @routes.post("", status_code=201)
    async def create(new: NewMemory, request: Request) -> Json:
        """Make an empty memory, or a copy of another."""
        name = may_open(request.state.caller, new.name)
        if new.copy_of is not None:
            may_read(request.state.caller, [new.copy_of], "copy_of")
        return await service.operate("create", name, service.memories.create, name, copy_of=new.copy_of)

    @routes.get("/{name}")
    async def usage(name: str, request: Request) -> Json:
        """Tokens and bytes by pool, ages, number of sources."""
        return await service.operate("usage", _own(request, name), service.memories.describe, name)

    @routes.get("/{name}/activity")
    async def activity(name: str, request: Request) -> ActivityBody:
        """What was done with it since the server started: how long it took, and its bytes afterwards."""
        await service.operate("activity", _own(request, name), service.memories.describe, name)
        return ActivityBody(since=service.activity.since, acts=service.activity.of(name))

    @routes.delete("/{name}", status_code=204)
    async def delete(name: str, request: Request) -> Response:
        """Remove a memory for good, its encryption key too."""
        await service.operate("delete", _own(request, name), service.memories.delete, name)
        service.activity.drop(name)
        return Response(status_code=204)


def _add_writing(routes: APIRouter, service: Service) -> None:
    @routes.post("/{name}/write")
    async def write(name: str, writing: Writing, request: Request) -> Json:
        """Remember a text, documents or messages; on disk when this is answered. A memory that there is not is made."""
        _own(request, name)
        if writing.messages is not None:
            turns = to_chat(writing.messages)
            work, at, dated = service.memories.write_messages, writing.at, writing.dated
            return _told(service, await service.operate("write", name, work, name, turns, at, dated=dated))
        items, keep = writing.items(), writing.keep_text
        return _told(service, await service.operate("write", name, service.memories.write, name, items, keep_text=keep))

    @routes.post("/{name}/files")
    async def write_files(
        name: str, request: Request, sent: Annotated[SentFiles, Form(media_type="multipart/form-data")]
    ) -> Json:
        """Remember text files (UTF-8)."""
        _own(request, name)
        said = _moment(sent.at)
        items = [
            Item(_decoded(await file.read(), file.filename), sent.source or file.filename, {}, said, sent.dated)
            for file in sent.files
        ]
        return _told(service, await service.operate("write", name, service.memories.write, name, items))

    @routes.post("/{name}/replace")
    async def replace(name: str, new: Replacing, request: Request) -> Json:
        """Forget a source and write its new text in its place, at once."""
        _own(request, name)
        work = service.memories.replace
        report = await service.operate("replace", name, work, name, new.item(), keep_text=new.keep_text)
        return _told(service, report)

    @routes.post("/{name}/forget")
    async def forget(name: str, what: Forgetting, request: Request) -> Json:
        """Forget a source for good: reads then are those of a memory that never had it."""
        _own(request, name)
        work = service.memories.forget
        removed = await service.operate("forget", name, work, name, what.source, rebuild=what.rebuild)
        return {"source": what.source, "memory_tokens": removed}

    @routes.post("/{name}/pin")
    async def pin(name: str, what: OfSource, request: Request) -> Json:
        """Keep a source regardless of ages and capacity."""
        await service.operate("pin", _own(request, name), service.memories.pin, name, what.source, pinned=True)
        return {"source": what.source, "pinned": True}

    @routes.post("/{name}/unpin")
    async def unpin(name: str, what: OfSource, request: Request) -> Json:
        """Keep a source no longer than others."""
        await service.operate("pin", _own(request, name), service.memories.pin, name, what.source, pinned=False)
        return {"source": what.source, "pinned": False}


def _add_reading(routes: APIRouter, service: Service) -> None:
    @routes.post("/{name}/search")
    async def search(name: str, what: Searching, request: Request) -> Json:
        """The sources that are found for a query, most relevant first."""
        names = [_own(request, name), *(n for n in may_read(request.state.caller, what.shared) if n != name)]
        work, options = service.memories.search, Json(limit=what.limit, where=what.where, times=what.times())
        return {"found": await service.operate("search", name, work, names, what.query, **options)}

    @routes.get("/{name}/sources")
    async def sources(
        name: str,
        request: Request,
        source: Annotated[str | None, Query(description="Only the source of this name.")] = None,
        texts: Annotated[bool, Query(description="Whether the written texts are given too.")] = False,
        since: Annotated[str | None, Query(description="Only what was said from then on.")] = None,
        until: Annotated[str | None, Query(description="Only what was said up to then.")] = None,
        as_of: Annotated[str | None, Query(description="The memory as it was then.")] = None,
    ) -> Json:
        """Its sources: tokens by pool, ages, times, metadata."""
        _own(request, name)
        options: Json = {"source": source, "texts": texts, "times": Times(*map(_moment, (since, until, as_of)))}
        found = await service.operate("sources", name, service.memories.sources, name, **options)
        return {"sources": found}

    @routes.post("/{name}/recalled")
    async def recalled(name: str, what: Recalling, request: Request) -> Json:
        """What an answer to a question reads: sources and the share of each. Reading changes no memory."""
        _own(request, name)
        shared = service.settings.shared if what.shared is None else may_read(request.state.caller, what.shared)
        prompt = [{"role": "user", "content": what.question}]
        settings = {"max_tokens": 1, "gate": "always", "where": what.where, **what.times()._asdict()}
        beside = [one for one in shared if one != name]
        question = Question(prompt, settings, name, beside, only_reads=True, passages=what.passages)
        answer = await service.answer(question, "recall")
        told = ("recalled", "prefix_tokens", "used_memory", *(["passages"] if what.passages else []))
        return {key: answer.about[key] for key in told}


def _add_history(routes: APIRouter, service: Service) -> None:
    @routes.get("/{name}/snapshots")
    async def snapshots(name: str, request: Request) -> Json:
        """Its snapshots, in the order in which they were made."""
        return {"snapshots": await service.operate("snapshots", _own(request, name), service.memories.snapshots, name)}

    @routes.post("/{name}/snapshots", status_code=201)
    async def snapshot(name: str, what: Labelled, request: Request) -> Json:
        """Keep the present state, to return to it later."""
        _own(request, name)
        return {"id": await service.operate("snapshot", name, service.memories.snapshot, name, what.label)}

    @routes.delete("/{name}/snapshots/{snapshot}", status_code=204)
    async def discard(name: str, snapshot: str, request: Request) -> Response:
        """Drop a snapshot."""
        await service.operate("discard", _own(request, name), service.memories.discard, name, snapshot)
        return Response(status_code=204)

    @routes.post("/{name}/rollback")
    async def rollback(name: str, what: OfSnapshot, request: Request) -> Json:
        """Return to a snapshot; the answer names one that undoes it. What was forgotten since does not come back."""
        return await service.operate("rollback", _own(request, name), service.memories.rollback, name, what.snapshot)

    @routes.get("/{name}/diff")
    async def diff(name: str, request: Request, before: Annotated[str, Query(description="Id of a snapshot.")]) -> Json:
        """The sources that were added, removed and changed since a snapshot."""
        return await service.operate("diff", _own(request, name), service.memories.diff, name, before)


def _add_files(routes: APIRouter, service: Service) -> None:
    @routes.get("/{name}/export", response_class=FileResponse, responses=A_FILE)
    async def export(name: str, request: Request) -> FileResponse:
        """The whole memory as one file, not encrypted."""
        _own(request, name)
        path = scratch_path(service.memories.store, ".mplus")
        try:
            await service.operate("export", name, service.memories.export, name, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        left = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, filename=f"{name}.mplus", media_type="application/octet-stream", background=left)

    @routes.post("/{name}/import", status_code=201, openapi_extra=BINARY)
    async def import_(name: str, request: Request) -> Json:
        """Keep an exported memory under a name that is free."""
        _own(request, name)
        path = scratch_path(service.memories.store, ".mplus")
        try:
            with path.open("xb") as file:
                async for part in request.stream():
                    await in_thread(file.write, part)
            return await service.operate("import", name, service.memories.import_, name, path)
        finally:
            path.unlink(missing_ok=True)


def _own(request: Request, name: str) -> str:
    return may_open(request.state.caller, name)


def _told(service: Service, report: Json) -> Json:
    service.metrics.tokens.labels("written").inc(report["text_tokens"])
    return report


def _decoded(data: bytes, name: str | None) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(415, "not_text", f"The file {name!r:.80} is no text in UTF-8. Convert it first.") from error
    if not text.strip():
        raise ValueError(f"The file {name!r:.80} holds no text.")
    return text


def _moment(text: str | None) -> str | float | None:
    """A time of a query: Unix seconds as a number, anything else as it is; 20240303 is a day, as in a body."""
    if text is None or (len(text) == len("20240303") and text.isdecimal()):
        return text
    try:
        return float(text)
    except ValueError:
        return text
