"""Names of memories: one check for stores, vaults and integrations."""

from typing import Any

import pytest

from mplus import MemoryStore
from mplus.storage.names import check_name


@pytest.mark.parametrize("name", ["Jürgen", "名前", "anna@example.org", "thread+1", "a" * 128, "b3d1f6a0-1c2d"])
def test_names_that_people_have_are_good(name: str) -> None:
    assert check_name(name) == MemoryStore.check_name(name, "memory_key=") == name


@pytest.mark.parametrize(
    "name", ["", "..", "a..b", "a/b", "a.", "con", "COM1.txt", "e\u0301", "☃", ".hidden", "a" * 129]
)
def test_other_names_are_refused_and_shown(name: str) -> None:
    with pytest.raises(ValueError, match="Memory name .*expected 1 to 128 letters"):
        check_name(name)
    with pytest.raises(ValueError, match="memory_key=.*expected 1 to 128 letters"):
        MemoryStore.check_name(name, "memory_key=")


@pytest.mark.parametrize("name", [5, None, b"anna", ["anna"]])
def test_what_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a string"):
        check_name(name)
