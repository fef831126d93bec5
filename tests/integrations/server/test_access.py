"""Keys, hosts, origins, limits: who is let in, and nobody reads another's memory."""

import json
import os
import stat
from pathlib import Path

import pytest

from mplus_integrations.server.access import Access
from mplus_integrations.server.admission import Rates
from mplus_integrations.server.keys import KeyRing, own_memory
from mplus_integrations.server.problems import Problem
from mplus_integrations.server.settings import ServeSettings, read_settings
from tests.integrations.server.conftest import MODEL, Served, Serving

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Who am I?"}], "max_tokens": 2}


def status(served: Served, key: str | None, method: str, path: str, **more: object) -> int:
    with served.client(key) as http:
        return http.request(method, path, **more).status_code  # type: ignore[arg-type]


def test_keys_are_on_disk_when_they_are_given_out_or_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, real, replace = list[tuple[str, Path]](), os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append(("force", Path(os.readlink(f"/proc/self/fd/{handle}"))))
        real(handle)

    def replaced(old: Path, new: Path) -> None:
        done.append(("replace", Path(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    file = tmp_path / "new" / "keys.json"
    known, _ = KeyRing(file).add("anna")
    assert ("force", tmp_path) in done, "the name of the new folder"
    assert done[-2:] == [("replace", file), ("force", file.parent)]
    done.clear()
    KeyRing(file).revoke(known.id)
    assert done[-2:] == [("replace", file), ("force", file.parent)]
    before = file.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    with pytest.raises(OSError, match="no room"):
        KeyRing(file).add("bob")
    assert file.read_bytes() == before and not list(file.parent.glob(".keys.json.*"))


def test_a_key_opens_its_own_memory_and_no_other_by_any_door(serving: Serving, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    _, anna = ring.add("anna")
    _, bob = ring.add("bob", opens=["team"])
    with serving(keys=tmp_path / "keys.json") as served:
        write = {"json": {"text": "Anna's dog is called Biscuit.", "source": "dog"}}
        assert status(served, anna, "POST", "/v1/memories/anna/write", **write) == 200
        assert status(served, bob, "POST", "/v1/memories/team/write", **write) == 200
        for method, path, body in [
            ("POST", "/v1/chat/completions", ASK | {"memory": "anna"}),
            ("POST", "/v1/chat/completions", ASK | {"shared": ["anna"]}),
            ("POST", "/v1/completions", {"model": MODEL, "prompt": "x", "memory": "anna"}),
            ("GET", "/v1/memories/anna", None),
            ("DELETE", "/v1/memories/anna", None),
            ("POST", "/v1/memories/anna/write", {"text": "x"}),
            ("POST", "/v1/memories/anna/search", {"query": "x"}),
            ("POST", "/v1/memories/bob/search", {"query": "x", "shared": ["anna"]}),
            ("POST", "/v1/memories/anna/recalled", {"question": "x"}),
            ("POST", "/v1/memories/bob/recalled", {"question": "x", "shared": ["anna"]}),
            ("POST", "/v1/memories/anna/replace", {"text": "x", "source": "dog"}),
            ("POST", "/v1/memories/anna/forget", {"source": "dog"}),
            ("POST", "/v1/memories/anna/pin", {"source": "dog"}),
            ("POST", "/v1/memories/anna/unpin", {"source": "dog"}),
            ("GET", "/v1/memories/anna/sources", None),
            ("GET", "/v1/memories/anna/snapshots", None),
            ("POST", "/v1/memories/anna/snapshots", {}),
            ("DELETE", "/v1/memories/anna/snapshots/x", None),
            ("POST", "/v1/memories/anna/rollback", {"snapshot": "x"}),
            ("GET", "/v1/memories/anna/diff?before=x", None),
            ("GET", "/v1/memories/anna/activity", None),
            ("GET", "/v1/memories/anna/export", None),
            ("POST", "/v1/memories/anna/import", None),
            ("POST", "/v1/memories", {"name": "mine", "copy_of": "anna"}),
            ("POST", "/v1/memories", {"name": "other"}),
        ]:
            assert status(served, bob, method, path, json=body) == 403, path
        with served.client(bob, **{"X-MPlus-Memory": "anna"}) as http:
            assert http.post("/v1/chat/completions", json=ASK).status_code == 403
        files = [("files", ("a.txt", b"x"))]
        assert status(served, bob, "POST", "/v1/memories/anna/files", files=files) == 403
        with served.client(bob) as http:
            assert [one["name"] for one in http.get("/v1/memories").json()["memories"]] == ["team"]
            assert http.post("/v1/chat/completions", json=ASK).json()["mplus"]["memory"] == "bob"


def test_a_key_is_told_what_it_opens(serving: Serving, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    (_, bob), (_, admin) = ring.add("bob", opens=["team"]), ring.add("admin", opens=None)
    with serving(keys=tmp_path / "keys.json", shared=("handbook",)) as served:
        with served.client(bob) as http:
            found = http.get("/v1/access").json()
        assert found == {
            "memory": "bob", "opens": ["bob", "team"], "reads": ["handbook"], "needs_key": True, "model": MODEL
        }  # fmt: skip
        with served.client(admin) as http:
            assert http.get("/v1/access").json()["opens"] is None
        assert status(served, "wrong", "GET", "/v1/access") == 401


def test_no_key_and_unknown_keys_are_refused_and_a_revoked_one_at_once(serving: Serving, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    known, key = ring.add("anna", opens=None)
    with serving(keys=tmp_path / "keys.json") as served:
        for wrong in (None, "mplus-guess", known.sha256, known.id):
            assert status(served, wrong, "GET", "/v1/memories") == 401
            assert status(served, wrong, "POST", "/v1/chat/completions", json=ASK) == 401
        assert status(served, None, "GET", "/healthz") == status(served, None, "GET", "/readyz") == 200
        assert status(served, key, "POST", "/v1/chat/completions", json=ASK | {"memory": "anyone"}) == 200
        ring.revoke(known.id)
        assert status(served, key, "GET", "/v1/memories") == 401


def test_a_damaged_file_of_keys_is_told_at_the_start_and_later_without_its_place(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    _, key = KeyRing(file).add("anna")
    with serving(keys=file) as served:
        file.write_text("{oops")
        with served.client(key) as http:
            answer = http.get("/v1/models")
        assert (answer.status_code, answer.json()["code"]) == (503, "keys_unreadable"), answer.text
        assert str(tmp_path) not in answer.text and answer.headers["retry-after"]
        assert any(getattr(record, "about", {}).get("code") == "keys_unreadable" for record in caplog.records)
    with pytest.raises(ValueError, match="keys.json is not a file of keys"):
        Access(ServeSettings(keys=file))


def test_a_file_of_keys_holds_hashes_and_is_for_the_user_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    known, key = ring.add("anna")
    text = (tmp_path / "keys.json").read_text()
    assert key not in text and key.removeprefix("mplus-") not in text and known.sha256 in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert KeyRing(tmp_path / "keys.json").find(key) == known and ring.find(key + "x") is None
    with pytest.raises(ValueError, match="no such key"):
        ring.revoke("none")
    (tmp_path / "keys.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(ValueError, match="is not a file of keys"):
        ring.list()


@pytest.mark.parametrize("sent", ["Zoê".encode(), "Zoê".encode("latin-1")], ids=["curl", "browser"])
def test_a_header_names_a_memory_however_its_letters_are_sent(served: Served, sent: bytes) -> None:
    with served.client() as http:
        answer = http.post("/v1/chat/completions", json=ASK, headers=[(b"x-mplus-memory", sent)])
    assert answer.json()["mplus"]["memory"] == "Zoê"


def test_without_a_file_each_key_has_a_memory_of_its_own(serving: Serving) -> None:
    with serving(require_key=True) as served:
        assert status(served, None, "GET", "/v1/memories") == 401
        name = served.chat("Hello", "secret-of-anna").json()["mplus"]["memory"]
        assert name == own_memory("secret-of-anna") and "secret" not in name
        assert status(served, "secret-of-bob", "GET", f"/v1/memories/{name}") == 403
        assert status(served, "secret-of-anna", "GET", f"/v1/memories/{name}") == 404, "nothing was told yet"
        note = {"text": "My desk is by the window."}
        assert status(served, "secret-of-anna", "POST", f"/v1/memories/{name}/write", json=note) == 200
        assert status(served, "secret-of-anna", "GET", f"/v1/memories/{name}") == 200


def test_shared_memories_are_read_beside_the_own_one_and_not_written(serving: Serving, tmp_path: Path) -> None:
    _, key = KeyRing(tmp_path / "keys.json").add("anna")
    _, admin = KeyRing(tmp_path / "keys.json").add("admin", opens=None)
    with serving(keys=tmp_path / "keys.json", shared=("handbook",)) as served:
        note = {"text": "The office is closed on Mondays. " * 6, "source": "hours"}
        assert status(served, key, "POST", "/v1/memories/handbook/write", json=note) == 403
        assert status(served, admin, "POST", "/v1/memories/handbook/write", json=note) == 200
        own = {"text": "My desk is by the window. " * 6, "source": "desk"}
        assert status(served, key, "POST", "/v1/memories/anna/write", json=own) == 200
        about = served.chat("When is the office closed?", key, gate="always").json()["mplus"]
        assert ("handbook", "hours") in {(one["memory"], one["source"]) for one in about["recalled"]}
        alone = served.chat("When is the office closed?", key, gate="always", shared=[]).json()["mplus"]
        assert {one["memory"] for one in alone["recalled"]} == {"anna"}
        assert alone["prefix_tokens"] < about["prefix_tokens"], "both are read"
        assert status(served, admin, "DELETE", "/v1/memories/handbook") == 204
        left = served.chat("When is the office closed?", key, gate="always").json()["mplus"]
        assert {one["memory"] for one in left["recalled"]} == {"anna"}, "others are still answered"
        lost = served.chat("When?", admin, shared=["nobody"])
        assert (lost.status_code, lost.json()["code"]) == (404, "memory_not_found")


def test_pages_of_elsewhere_and_other_host_names_are_refused(serving: Serving) -> None:
    with serving() as served:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
            with served.client(**headers) as http:
                answer = http.get("/v1/memories")
                assert answer.status_code == 403, headers
                assert "access-control-allow-origin" not in answer.headers
        with served.client(Origin=served.url) as http:
            assert http.get("/v1/memories").status_code == 200
    with serving(origins=("https://chat.example",)) as served, served.client(Origin="https://chat.example") as http:
        answer = http.get("/v1/memories")
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://chat.example"
        assert answer.headers["access-control-expose-headers"] == "Retry-After, X-Request-Id"


@pytest.mark.parametrize(
    "origin", ["*", "null", "chat.example", "https://chat.example/", "https://Chat.example", "https:"]
)
def test_an_origin_that_no_browser_sends_is_refused_when_the_server_starts(origin: str) -> None:
    with pytest.raises(ValueError, match="expected an origin as browsers send it"):
        ServeSettings(origins=("https://good.example:8443", origin))


def test_too_large_requests_are_refused_also_those_that_do_not_say(serving: Serving) -> None:
    with serving(max_body_bytes=1000) as served, served.client() as http:
        big = json.dumps({"text": "x" * 2000}).encode()
        json_type = {"Content-Type": "application/json"}
        assert http.post("/v1/memories/me/write", content=big, headers=json_type).status_code == 413
        unsaid = http.post("/v1/memories/me/write", content=iter([big[:900], big[900:]]), headers=json_type)
        assert unsaid.status_code == 413 and unsaid.json()["code"] == "too_large"
        assert http.get("/v1/memories").json()["memories"] == []


def test_rates_are_of_each_caller_and_say_when_to_come_again(serving: Serving) -> None:
    with serving(requests_per_minute=2) as served:
        assert [status(served, "anna", "GET", "/v1/models") for _ in range(3)] == [200, 200, 429]
        with served.client("anna") as http:
            assert 1 <= int(http.get("/v1/models").headers["retry-after"]) <= 30
        assert status(served, "bob", "GET", "/v1/models") == 200


def test_a_rate_fills_again_with_time() -> None:
    now = [0.0]
    rates = Rates(60, lambda: now[0])
    for _ in range(60):
        rates.take("anna")
    with pytest.raises(Problem, match="60 requests in a minute"):
        rates.take("anna")
    now[0] += 1.0
    rates.take("anna")
    with pytest.raises(Problem):
        rates.take("anna")


def test_settings_come_from_flags_then_environment_then_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nmodel = "from file"\nshared = ["handbook"]\nmax_waiting = 3\n')
    monkeypatch.setenv("MPLUS_SERVE_PORT", "2")
    monkeypatch.setenv("MPLUS_SERVE_MODEL", "from environment")
    monkeypatch.setenv("MPLUS_SERVE_ALIASES", "one, two")
    found = read_settings({"port": 3}, file)
    assert (found.port, found.model, found.aliases, found.shared) == (
        3,
        "from environment",
        ("one", "two"),
        ("handbook",),
    )
    file.write_text("prot = 1")
    with pytest.raises(ValueError, match="does not take 'prot'. Use port"):
        read_settings({}, file)
    monkeypatch.setenv("MPLUS_SERVE_MODLE", "x")
    with pytest.raises(ValueError, match="MPLUS_SERVE_MODEL"):
        read_settings({})
    with pytest.raises(FileNotFoundError):
        read_settings({}, tmp_path / "none.toml")


def test_the_commands_list_their_settings_and_make_keys(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mplus.cli.app import app

    def invoke(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    assert "--requests-per-minute" in invoke("serve", "--help") and "--transport" in invoke("mcp", "--help")
    file = ("--file", str(tmp_path / "keys.json"))
    made = json.loads(invoke("keys", "add", "anna", "--opens", "team", *file, "--json"))
    (known,) = json.loads(invoke("keys", "list", *file, "--json"))
    assert known["id"] == made["id"] and known["opens"] == ["team"] and made["key"] not in str(known)
    invoke("keys", "revoke", made["id"], *file)
    assert KeyRing(tmp_path / "keys.json").find(made["key"]) is None


def test_a_key_is_needed_where_other_machines_can_reach_the_host() -> None:
    assert not ServeSettings().needs_key and not ServeSettings(host="::1").needs_key
    assert ServeSettings(host="0.0.0.0").needs_key and ServeSettings(keys=Path("keys.json")).needs_key
    assert not ServeSettings(host="0.0.0.0", require_key=False).needs_key
    with pytest.raises(ValueError, match="beside keys"):
        ServeSettings(keys=Path("keys.json"), require_key=False)
