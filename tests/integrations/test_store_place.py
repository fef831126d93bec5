"""The settings of a store, kept as JSON: the same store is opened again."""

from pathlib import Path

import fsspec
import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from mplus import KeyVault, MemoryKeyError, MemoryStore, UrlStore
from mplus_integrations.store_place import StorePlace


def again(store: MemoryStore) -> MemoryStore:
    return StorePlace.model_validate_json(StorePlace.of(store).model_dump_json()).opened()


def test_a_store_behind_a_url_is_opened_behind_it_again(tmp_path: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    url = "memory://places/x"
    found = again(UrlStore(url, tmp_path / "copies", max_memory_bytes=8, max_local_bytes=9))
    assert isinstance(found, UrlStore) and found.root == tmp_path / "copies"
    assert (found.url, found.max_memory_bytes, found.max_local_bytes) == (url, 8, 9)
    with pytest.raises(MemoryKeyError, match=rf"UrlStore\('{url}'"):
        again(UrlStore(url, tmp_path / "copies", vault=KeyVault(tmp_path / "vault")))


def test_a_local_store_and_json_without_a_url_are_opened_as_local_stores(tmp_path: Path) -> None:
    found = again(MemoryStore(tmp_path, max_memory_bytes=8, max_total_bytes=9))
    assert type(found) is MemoryStore and (found.max_memory_bytes, found.max_total_bytes) == (8, 9)
    earlier = f'{{"root": {str(tmp_path)!r}, "max_memory_bytes": 8, "encrypted": false}}'.replace("'", '"')
    found = StorePlace.model_validate_json(earlier).opened()
    assert type(found) is MemoryStore and found.root == tmp_path and found.max_memory_bytes == 8
