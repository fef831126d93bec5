from pathlib import Path

import pytest
import torch

import mplus
from mplus import CorruptMemoryError, KeyVault, Memory, MemoryKey, MemoryKeyError, MemorySaveError, MemoryStore
from mplus.memory import saving
from mplus.model import MPlus
from mplus.storage.files import verify
from mplus.storage.folder import Folder
from tests.memory.saves import logits, written


def bytes_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("verified", [saving.VERIFIED_BYTES, 0])
def test_an_encrypted_memory_loads_with_its_key_only(
    tmp_path: Path, model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch, verified: int
) -> None:
    monkeypatch.setattr(saving, "VERIFIED_BYTES", verified)
    memory, key = written(model, text), MemoryKey.new()
    memory.save(tmp_path, key=key)
    loaded = Memory.load(tmp_path, model, key=key)
    assert torch.equal(logits(model, loaded), logits(model, memory))
    assert loaded.sources() == memory.sources()
    verify(Folder(tmp_path), key=key)
    with pytest.raises(MemoryKeyError, match="encrypted"):
        Memory.load(tmp_path, model)
    with pytest.raises(MemoryKeyError, match="the key given is"):
        Memory.load(tmp_path, model, key=MemoryKey.new())
    for one in (memory, loaded):
        model.write(one, text[:333], source="later")
    loaded.save(tmp_path, key=key)
    assert Memory.load(tmp_path, model, key=key).fingerprint == memory.fingerprint


def test_nothing_of_an_encrypted_memory_can_be_read_in_its_files(tmp_path: Path, model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "The safe opens with zulu-4711. " * 20, source="secret plans", keep_text=True)
    rows = memory.state.tracks[0].short_term.content.keys[0][:4].contiguous().numpy().tobytes()
    memory.save(tmp_path / "plain")
    memory.save(tmp_path / "sealed", key=MemoryKey.new())
    plain, sealed = bytes_in(tmp_path / "plain"), bytes_in(tmp_path / "sealed")
    for what in (b"secret plans", b"zulu-4711", rows, b"retrieval_keys", memory.state.digest.encode()):
        assert what in plain
        assert what not in sealed


def test_saving_with_a_key_leaves_no_plain_file_and_the_other_way_round(
    tmp_path: Path, model: MPlus, text: str
) -> None:
    memory, key = written(model, text), MemoryKey.new()
    memory.save(tmp_path)
    memory.save(tmp_path, key=key)
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(MemoryKeyError, match="not encrypted"):
        memory.save(tmp_path)
        Memory.load(tmp_path, model, key=key)
    assert not list(tmp_path.glob("*.sealed"))


def test_a_save_with_a_new_key_that_fails_leaves_the_one_with_the_old_key(
    tmp_path: Path, model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = MemoryKey.new(), MemoryKey.new()
    written(model, text * 3).save(tmp_path, key=old)
    files = {path.name for path in tmp_path.glob("tokens-*")}
    memory = Memory.load(tmp_path, model, key=old)
    memory.save(tmp_path, key=old)
    assert {path.name for path in tmp_path.glob("tokens-*")} == files  # what is there is found again

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("exchange", "sync", "put"):
        with monkeypatch.context() as patch, pytest.raises(MemorySaveError, match="No space left"):
            patch.setattr(Folder, step, fail)
            memory.save(tmp_path, key=new)
        assert Memory.load(tmp_path, model, key=old).fingerprint == memory.fingerprint
    memory.save(tmp_path, key=new)
    assert Memory.load(tmp_path, model, key=new).fingerprint == memory.fingerprint
    assert not files & {path.name for path in tmp_path.glob("tokens-*")}


def test_equal_content_has_different_names_and_bytes_under_different_keys(
    tmp_path: Path, model: MPlus, text: str
) -> None:
    memory = written(model, text)
    for name in "ab":
        memory.save(tmp_path / name, key=MemoryKey.new())
    short_term = [{p.name for p in (tmp_path / name).glob("state-*")} for name in "ab"]
    assert not short_term[0] & short_term[1]


def test_exchanged_encrypted_files_are_noticed(tmp_path: Path, model: MPlus, text: str) -> None:
    memory, key = written(model, text), MemoryKey.new()
    memory.save(tmp_path, key=key)
    first, second = sorted(tmp_path.glob("tokens-*"))[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptMemoryError):
        Memory.load(tmp_path, model, key=key)
    first.write_bytes(data)
    Memory.load(tmp_path, model, key=key)


def test_a_key_is_not_shown_by_repr() -> None:
    key = MemoryKey.new()
    assert key.secret.hex() not in repr(key) and str(key.secret) not in repr(key)
    with pytest.raises(ValueError, match="32 bytes"):
        MemoryKey(b"short")


# --- the vault ----------------------------------------------------------------------------------------


@pytest.fixture(params=["plain", "master", "passphrase"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> KeyVault:
    if request.param == "passphrase":
        return KeyVault.with_passphrase(tmp_path / "keys", "correct horse")
    return KeyVault(tmp_path / "keys", master=b"m" * 32 if request.param == "master" else None)


def test_a_store_with_a_vault_encrypts_and_a_destroyed_key_erases(
    tmp_path: Path, model: MPlus, text: str, vault: KeyVault
) -> None:
    store = MemoryStore(tmp_path / "s", vault=vault)
    for name in ("alice", "bob"):
        with store.open(name, model) as memory:
            model.write(memory, text[:200], source=name)
    assert [m.encrypted for m in store.list()] == [True, True]
    again = MemoryStore(tmp_path / "s", vault=vault)
    with again.open("alice", model) as memory:
        assert [s.name for s in memory.sources()] == ["alice"]
    with pytest.raises(MemoryKeyError), MemoryStore(tmp_path / "s").open("alice", model):
        pass
    assert vault.destroy("alice")
    assert not vault.destroy("alice")
    with (
        pytest.raises(MemoryKeyError, match="destroyed"),
        MemoryStore(tmp_path / "s", vault=vault).open("alice", model),
    ):
        pass
    store.copy("bob", "carol")
    assert vault.key("carol") != vault.key("bob")
    store.delete("bob")
    assert not list((tmp_path / "keys").glob("bob*"))
    with again.open("carol", model) as memory:
        assert [s.name for s in memory.sources()] == ["bob"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").iterdir())


def test_a_vault_opens_with_its_own_master_only(tmp_path: Path) -> None:
    right = KeyVault.with_passphrase(tmp_path, "right")
    key = right.key_for_saving("alice")
    assert KeyVault.with_passphrase(tmp_path, "right").key("alice") == key
    for other in (
        KeyVault.with_passphrase(tmp_path, "wrong"),
        KeyVault(tmp_path),
        KeyVault(tmp_path, master=b"x" * 32),
    ):
        with pytest.raises(MemoryKeyError):
            other.key("alice")
    (tmp_path / "alice.key").write_text('{"format": 1, "wrapped": true, "secret": 7}')
    with pytest.raises(MemoryKeyError, match="holds no key"):
        right.key("alice")
    with pytest.raises(ValueError, match="passphrase"):
        KeyVault.with_passphrase(tmp_path, "")


def test_a_plain_store_becomes_an_encrypted_one(tmp_path: Path, model: MPlus, text: str) -> None:
    with MemoryStore(tmp_path / "s").open("alice", model) as memory:
        model.write(memory, text[:200], source="a")
    store = MemoryStore(tmp_path / "s", vault=KeyVault(tmp_path / "keys"))
    with store.open("alice", model):
        pass
    assert [m.encrypted for m in store.list()] == [True]
    assert not list((tmp_path / "s" / "alice").glob("*.safetensors"))


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ImportError, match=r"mplus-memory\[encryption\]"):
        mplus.MemoryKey.new()
