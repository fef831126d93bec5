"""The API of memories, from writing to forgetting and rolling back."""

from typing import Any

import pytest

import mplus
from tests.integrations.server.conftest import MODEL, Served, Serving

NOTE = "The key is under the third flowerpot by the door. " * 3


def call(served: Served, method: str, path: str, body: Any = None, *, status: int = 200, **more: Any) -> Any:
    with served.client() as http:
        answer = http.request(method, f"/v1/memories{path}", json=body, **more)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content and "json" in answer.headers["content-type"] else answer.content


def names(served: Served, memory: str = "me") -> list[str]:
    return [source["name"] for source in call(served, "GET", f"/{memory}/sources")["sources"]]


def test_write_search_sources_recalled_forget(served: Served) -> None:
    report = call(served, "POST", "/me/write", {"text": NOTE, "source": "note", "metadata": {"by": "me"}})
    assert report["text_tokens"] == len(NOTE) and report["sources"] == ["note"]
    documents = [{"text": "Pears are green, mostly so."}, {"text": "Plums are blue.", "source": "a/b ?"}]
    assert call(served, "POST", "/me/write", {"documents": documents})["sources"] == ["text-2", "a/b ?"]
    found = call(served, "POST", "/me/search", {"query": "key", "limit": 1, "where": {"by": "me"}})["found"]
    assert found[0]["source"] == "note" and found[0]["texts"] == [NOTE] and found[0]["memory"] == "me"
    (source,) = call(served, "GET", "/me/sources", params={"source": "a/b ?", "texts": "true"})["sources"]
    assert source["texts"] == ["Plums are blue."] and source["text_tokens"] == 15
    recalled = call(served, "POST", "/me/recalled", {"question": "Where is the key?"})
    assert {one["source"] for one in recalled["recalled"]} <= {"note", "text-2", "a/b ?"} and recalled["prefix_tokens"]
    assert call(served, "POST", "/me/forget", {"source": "a/b ?"})["memory_tokens"] == 15
    assert names(served) == ["note", "text-2"]
    call(served, "POST", "/me/forget", {"source": "a/b ?"}, status=404)
    stats = call(served, "GET", "/me")
    assert stats["num_sources"] == 2 and stats["nbytes"] > 0 and stats["short_term"]["tokens"] > 0


def test_messages_and_files_are_written_each_once(served: Served) -> None:
    messages = [{"role": "user", "content": "I live in Graz."}, {"role": "assistant", "content": "Noted."}]
    assert len(call(served, "POST", "/me/write", {"messages": messages})["sources"]) == 2
    assert call(served, "POST", "/me/write", {"messages": messages})["sources"] == []
    files = [("files", ("a.txt", b"Pears are green.")), ("files", ("b.md", "\ufeffPlums".encode()))]
    assert call(served, "POST", "/me/files", files=files)["sources"] == ["a.txt", "b.md"]
    call(served, "POST", "/me/files", files=[("files", ("c.bin", b"\xff\xfe\x00"))], status=415)
    assert names(served)[-2:] == ["a.txt", "b.md"]
    call(served, "POST", "/none/write", {"messages": [{"role": "assistant", "content": ""}]})
    call(served, "GET", "/none", status=404)  # of nothing to remember no memory is made


def test_replace_keeps_the_pin_and_the_old_text_is_gone(served: Served) -> None:
    call(served, "POST", "/me/write", {"text": NOTE, "source": "note"})
    assert call(served, "POST", "/me/pin", {"source": "note"})["pinned"]
    call(served, "POST", "/me/replace", {"text": "The key is with the neighbour.", "source": "note"})
    (source,) = call(served, "GET", "/me/sources?texts=true")["sources"]
    assert source["texts"] == ["The key is with the neighbour."] and source["pinned"]
    assert not call(served, "POST", "/me/unpin", {"source": "note"})["pinned"]
    call(served, "POST", "/me/replace", {"text": "x", "source": "none"}, status=404)
    assert names(served) == ["note"]


def test_what_is_replaced_stays_what_it_is(served: Served) -> None:
    call(served, "POST", "/me/write", {"text": NOTE, "source": "note", "metadata": {"lang": "en"}})
    memories = served.service.memories
    with memories.store.open("me", memories.model) as memory:
        memories.model.write(memory, NOTE, source="turn", metadata={"mplus_thread": "t", "role": "user"})
    (turn,) = [one for one in call(served, "GET", "/me/sources")["sources"] if one["name"] == "turn"]
    new = {"text": "Another one.", "source": "turn"}
    for metadata in (turn["metadata"], {"role": "user"}):
        call(served, "POST", "/me/replace", {**new, "metadata": metadata})
        found = {one["name"]: one["metadata"] for one in call(served, "GET", "/me/sources")["sources"]}
        assert found["turn"] == {"mplus_thread": "t", "role": "user"}
    for source in ("turn", "note"):
        said = call(
            served, "POST", "/me/replace", {**new, "source": source, "metadata": {"mplus_thread": "x"}}, status=400
        )
        assert "mplus_thread" in said["detail"]


def test_history_is_kept_compared_and_undone(served: Served) -> None:
    call(served, "POST", "/me/write", {"text": NOTE, "source": "first"})
    taken = call(served, "POST", "/me/snapshots", {"label": "before"}, status=201)["id"]
    call(served, "POST", "/me/write", {"text": "Another note.", "source": "second"})
    assert call(served, "GET", f"/me/diff?before={taken}")["added"] == ["second"]
    undone = call(served, "POST", "/me/rollback", {"snapshot": taken})
    assert undone["removed"] == ["second"] and names(served) == ["first"]
    call(served, "POST", "/me/rollback", {"snapshot": undone["undo"]})
    assert names(served) == ["first", "second"]
    assert call(served, "GET", "/me/snapshots")["snapshots"][0]["label"] == "before"
    call(served, "DELETE", f"/me/snapshots/{taken}", status=204)
    call(served, "GET", f"/me/diff?before={taken}", status=404)


def test_memories_are_made_copied_exported_imported_and_deleted(served: Served) -> None:
    call(served, "POST", "", {"name": "me"}, status=201)
    call(served, "POST", "", {"name": "me"}, status=409)
    call(served, "POST", "/me/write", {"text": NOTE, "source": "note"})
    call(served, "POST", "", {"name": "copy", "copy_of": "me"}, status=201)
    exported = call(served, "GET", "/me/export")
    call(served, "POST", "/again/import", status=201, content=exported)
    call(served, "POST", "/again/import", status=409, content=exported)
    call(served, "POST", "/broken/import", status=422, content=exported[: len(exported) // 2])
    assert [one["name"] for one in call(served, "GET", "")["memories"]] == ["again", "copy", "me"]
    assert names(served, "again") == names(served, "copy") == ["note"]
    call(served, "DELETE", "/me", status=204)
    call(served, "DELETE", "/me", status=404)
    call(served, "GET", "/me/sources", status=404)
    assert not list((served.service.memories.store.root / ".serve").iterdir()), "nothing is left of what was sent"


def test_asking_what_is_recalled_makes_and_changes_no_memory(served: Served, tiny: mplus.MPlus) -> None:
    call(served, "POST", "/nobody/recalled", {"question": "Who?"}, status=404)
    call(served, "POST", "/me/write", {"text": NOTE, "source": "note"})
    before = served.service.memories.store.load("me", tiny).fingerprint
    call(served, "POST", "/me/recalled", {"question": "Where is the key?"})
    assert served.service.memories.store.load("me", tiny).fingerprint == before
    assert [one["name"] for one in call(served, "GET", "")["memories"]] == ["me"]


@pytest.mark.parametrize(
    "body",
    [{}, {"text": ""}, {"text": "x", "documents": [{"text": "y"}]}, {"txt": "x"}, {"messages": [], "text": None}],
)
def test_nothing_wrong_is_written(served: Served, body: Any) -> None:
    assert call(served, "POST", "/me/write", body, status=400)["code"] == "invalid_request"
    assert call(served, "GET", "")["memories"] == []


def test_a_quota_is_kept_and_the_memory_stays_as_it_was(serving: Serving) -> None:
    with serving(max_memory_bytes=150_000) as served:
        call(served, "POST", "/me/write", {"text": "A short note.", "source": "one"})
        answer = call(served, "POST", "/me/write", {"text": NOTE * 40, "source": "two"}, status=413)
        assert answer["code"] == "memory_limit" and names(served) == ["one"]


def test_activity_tells_how_long_and_how_large_and_is_gone_with_the_memory(served: Served) -> None:
    call(served, "POST", "/me/write", {"text": NOTE, "source": "note"})
    call(served, "POST", "/me/search", {"query": "key"})
    call(served, "POST", "/me/forget", {"source": "none"}, status=404)
    assert served.chat("Where is the key?", memory="me").status_code == 200
    found = call(served, "GET", "/me/activity")
    acts = found["acts"]
    assert [act["operation"] for act in acts] == ["write", "search", "chat"], "what failed, and looking, is left out"
    assert all(act["seconds"] > 0 and act["nbytes"] > 1000 and act["time"] >= found["since"] for act in acts)
    assert 0 < acts[2]["first_text_seconds"] <= acts[2]["seconds"] and acts[0]["first_text_seconds"] is None
    assert "flowerpot" not in str(found)
    call(served, "DELETE", "/me", status=204)
    call(served, "GET", "/me/activity", status=404)
    call(served, "POST", "", {"name": "me"}, status=201)
    assert [act["operation"] for act in call(served, "GET", "/me/activity")["acts"]] == ["create"]


def test_recalled_tells_sentences_where_they_are_asked_for(served: Served) -> None:
    call(served, "POST", "/me/write", {"text": "The key is under the mat. Pears are green.", "source": "note"})
    plain = call(served, "POST", "/me/recalled", {"question": "Where is the key?"})
    told = call(served, "POST", "/me/recalled", {"question": "Where is the key?", "passages": True})
    assert "passages" not in plain and told.items() >= plain.items()
    (passage,) = told["passages"]
    assert passage["sentences"] == ["The key is under the mat.", "Pears are green."]
    assert (passage["source"], passage["memory"], passage["pool"]) == ("note", "me", "short_term")


def test_what_is_written_with_a_time_is_read_by_it(served: Served) -> None:
    old = {"text": "The key is with Anna.", "source": "old", "at": "2023-05-01"}
    call(served, "POST", "/me/write", {"documents": [old, {"text": "Pears are green.", "source": "now"}]})
    call(served, "POST", "/me/write", {"text": NOTE, "source": "new", "at": 1714521600, "dated": True})
    call(served, "POST", "/me/write", {"messages": [{"role": "user", "content": "Hello."}], "at": "2023-05-02"})
    params = {"as_of": "2023-12-31", "texts": "true"}
    first, turn = call(served, "GET", "/me/sources", params=params)["sources"]
    assert (first["name"], first["earliest"], turn["texts"]) == ("old", 1682899200, ["User: Hello."])
    params = {"since": "1714521600", "until": "1714521601"}
    assert [one["name"] for one in call(served, "GET", "/me/sources", params=params)["sources"]] == ["new"]
    asked = {"query": "key", "since": "2024-05-01T00:00:00Z", "until": "2024-05-01"}
    assert [one["source"] for one in call(served, "POST", "/me/search", asked)["found"]] == ["new"]
    recalled = call(served, "POST", "/me/recalled", {"question": "Where is the key?", "as_of": "2023-05-01"})
    assert [one["source"] for one in recalled["recalled"]] == ["old"]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 2, "gate": "always"}
    with served.client() as http:
        answer = http.post("/v1/chat/completions", json={**body, "memory": "me", "as_of": "2023-05-01"}).json()
    assert {one["source"] for one in answer["mplus"]["recalled"]} == {"old"}
    call(served, "POST", "/me/replace", {"text": "The key is lost.", "source": "old", "at": "2025-01-01"})
    assert names(served) == ["now", "new", turn["name"], "old"]
    for wrong in ({"at": "soon"}, {"dated": True}, {"at": True}):
        call(served, "POST", "/me/write", {"text": "x", **wrong}, status=400)
    day = {"since": "20230501", "until": "20230501"}  # a day, as in a body, and not seconds of 1970
    assert [one["name"] for one in call(served, "GET", "/me/sources", params=day)["sources"]] == []
    call(served, "POST", "/me/write", {"text": "On a day.", "source": "day", "at": "20230501"})
    assert [one["name"] for one in call(served, "GET", "/me/sources", params=day)["sources"]] == ["day"]
    call(served, "POST", "/me/search", {"query": "key", "since": 2, "until": 1}, status=400)
    call(served, "GET", "/me/sources", params={"as_of": "then"}, status=400)
