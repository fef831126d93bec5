"""``mplus verify``, ``backup`` and ``restore``, of the user's store and of others."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mplus import KeyVault, MemoryStore
from mplus.cli.app import app
from mplus.model import MPlus


def invoke(*arguments: object, code: int = 0, text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), input=text, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_verify_backup_and_restore(tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLUS_HOME", str(tmp_path / "home"))
    for root in (tmp_path / "home" / "memories", tmp_path / "s"):
        with MemoryStore(root).open("alice", model) as memory:
            model.write(memory, "Something that is worth keeping.", source="a")
    for options in ((), ("--store", tmp_path / "s")):
        target = tmp_path / f"backup{len(options)}"
        assert invoke("verify", *options) == "alice: whole\n"
        assert "Copied 1 memories" in invoke("backup", target, *options)
        assert "Restored 'alice'" in invoke("restore", target, "--overwrite", *options)
    assert "whole" in invoke("verify", tmp_path / "s" / "alice")
    path = max((tmp_path / "s" / "alice").glob("tokens-*"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "alice: " in invoke("verify", "--store", tmp_path / "s", code=1)
    invoke("restore", tmp_path / "backup2", "alice", "--overwrite", "--store", tmp_path / "s")
    assert invoke("verify", "alice", "--store", tmp_path / "s") == "alice: whole\n"


def test_encrypted_memories_are_verified_with_their_vault(tmp_path: Path, model: MPlus) -> None:
    vault = KeyVault.with_passphrase(tmp_path / "keys", "correct horse")
    MemoryStore(tmp_path / "s", vault=vault).put("alice", model.new_memory())
    options = ("--store", tmp_path / "s")
    assert "encrypted" in invoke("verify", *options, code=1)
    keys = ("--keys", tmp_path / "keys", "--passphrase")
    assert "alice: whole" in invoke("verify", *options, *keys, text="correct horse\n")
    assert "Copied 1" in invoke("backup", tmp_path / "b", *options, *keys, text="correct horse\n")
