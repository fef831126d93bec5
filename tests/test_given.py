"""Checks of arguments; ``tests.reliability.given`` gives everything to every public method."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mplus.given import check_kind, check_number, listed, no_switch, path_of, whole_number


def test_true_is_no_number() -> None:
    assert [no_switch(value) for value in (1, 0.5, "5", None)] == [1, 0.5, "5", None]
    for value in (True, False, np.bool_(True)):
        with pytest.raises(ValueError, match="expected a number, not (True|False)"):
            no_switch(value)


@pytest.mark.parametrize("value", [None, True, "5", 2.5, float("nan"), []])
def test_a_whole_number_is_one(value: Any) -> None:
    assert whole_number("seed", np.int64(5)) == 5
    with pytest.raises(ValueError, match=r"seed=.*expected a whole number\."):
        whole_number("seed", value)
    with pytest.raises(ValueError, match=r"seed=0 \(int\): expected a whole number of at least 1"):
        whole_number("seed", 0, least=1)


@pytest.mark.parametrize("value", [None, True, "5", -1, float("nan"), float("inf"), []])
def test_a_number_is_finite_and_not_below_zero(value: Any) -> None:
    for known in (1e9, np.int64(5), np.float32(0.5)):
        check_number("limit", known, "a number")
    check_number("limit", None, "a number", optional=True)
    with pytest.raises(ValueError, match=r"limit=.*expected a number"):
        check_number("limit", value, "a number")


@pytest.mark.parametrize("value", [None, "", b"folder", 5, []])
def test_a_path_is_one_and_not_empty(value: Any) -> None:
    assert path_of("folder", "~/x") == Path("~/x").expanduser()
    with pytest.raises(ValueError, match=r"folder=.*expected a path"):
        path_of("folder", value)


URLS = (
    "s3://bucket/x",
    "gs://bucket",
    "file:///tmp/x",
    "simplecache::s3://bucket/x",
    Path("s3://bucket/x"),
    Path("simplecache::s3://bucket/x"),
    Path("zip::s3://bucket/x"),
    Path("zip://inner/file::s3://bucket/x.zip"),
    Path("zip://*.csv::simplecache::gs://bucket/x.zip"),
    Path("ZIP::S3://bucket/x"),
    Path("tar::file:///tmp/x.tar"),
    Path("dask::ours://bucket/x"),
    Path("memory://x"),
    Path("zip://x"),
    "zip::s3://bucket/x",
    "zip://inner::s3://bucket/x.zip",
)


@pytest.mark.parametrize("value", URLS)
def test_a_url_is_no_path(value: Any) -> None:
    with pytest.raises(ValueError, match=r"folder=.*expected a path on this machine, not a url\. Mount it\."):
        path_of("folder", value, instead="Mount it.")


@pytest.mark.parametrize(
    "value",
    [
        "C://data",
        "C:/data",
        "./s3:/x",
        "/data/s3://x",
        "a:b",
        "memories::x",
        "notes:/x",
        Path("C:/x"),
        Path("notes:") / "x",
        Path("notes::anna") / "x",
        Path("std::vector"),
    ],
)
def test_what_only_looks_like_a_url_is_a_path(value: Any) -> None:
    assert path_of("folder", value) == Path(value)


def test_a_path_has_no_null_character() -> None:
    with pytest.raises(ValueError, match=r"folder='a.x00b'.*null character"):
        path_of("folder", "a\0b")


@pytest.mark.parametrize("value", [None, "ab", b"ab", {}, 5])
def test_a_text_is_no_list(value: Any) -> None:
    assert listed("texts", ("a",)) == ["a"]
    with pytest.raises(ValueError, match=r"texts=.*expected a list"):
        listed("texts", value)


def test_a_kind_may_be_optional() -> None:
    check_kind("vault", None, Path, "a path", optional=True)
    with pytest.raises(ValueError, match=r"vault=None \(NoneType\): expected a path"):
        check_kind("vault", None, Path, "a path")
