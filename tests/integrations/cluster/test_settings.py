"""Settings of replicas and of memories behind a url: what does not fit together is told."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

for needed in ("fastapi", "pydantic_settings", "prometheus_client"):
    pytest.importorskip(needed, reason=f"needs the extra serve: {needed} is not installed")

import mplus
from mplus_integrations.server.service import opened_store
from mplus_integrations.server.settings import ServeSettings, read_settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicas": 2}, "--ray"),
        ({"ray": True, "replicas": 3, "max_replicas": 2}, "max_replicas=2"),
        ({"max_local_bytes": 5}, "memories_url"),
        ({"memories_url": "memory://b", "max_total_bytes": 5}, "max_total_bytes"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(given)


def test_memories_are_kept_where_the_settings_say(tmp_path: Path) -> None:
    here = opened_store(ServeSettings(memories=tmp_path))
    assert type(here) is mplus.MemoryStore and here.root == tmp_path
    there = opened_store(ServeSettings(memories=tmp_path, memories_url="memory://settings/x", max_local_bytes=9))
    assert isinstance(there, mplus.UrlStore) and there.url == "memory://settings/x" and there.max_local_bytes == 9
    fsspec.filesystem("memory").store.clear()


def test_copies_of_a_url_are_not_among_the_memories_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mplus.checkpoint.catalog.cache_root", lambda: tmp_path)
    usual = opened_store(ServeSettings()).root
    (usual / "diary").mkdir()
    (usual / "diary" / "memory.json").write_text("{}")
    one, other, same = (
        opened_store(ServeSettings(memories_url=f"memory://settings/{name}")).root for name in ("x", "y", "x/")
    )
    assert len({usual, one, other}) == 3 and one == same and one.parent == usual.parent == tmp_path
    with pytest.raises(ValueError, match="not copies"):
        opened_store(ServeSettings(memories=usual, memories_url="memory://settings/x"))
    assert (usual / "diary").exists()


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from mplus_integrations.server.command import serve

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mplus_integrations.cluster.running", raising=False)
    with pytest.raises(ImportError, match=r"mplus-memory\[cluster\]"):
        serve(ray=True)
