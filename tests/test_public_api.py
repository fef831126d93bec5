import subprocess
import sys
from importlib import import_module

import pytest

import mplus


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert mplus.__all__ == sorted(mplus.__all__)
    for name in mplus.__all__:
        assert getattr(mplus, name).__doc__
    assert set(mplus.__all__) <= set(dir(mplus))


@pytest.mark.parametrize(
    "name", ["mplus_integrations", "mplus_integrations.langchain", "mplus_integrations.llama_index"]
)
def test_every_name_of_an_adapter_is_there_and_the_list_is_sorted(name: str) -> None:
    package = import_module(name)
    assert package.__all__ == sorted(package.__all__)
    for exported in package.__all__:
        assert getattr(package, exported).__name__ == exported


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        mplus.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import mplus", "torch"),
        ("import mplus", "importlib.metadata"),
        ("import mplus.cli.app", "torch"),
        ("import mplus_integrations", "langchain_core"),
        ("from mplus_integrations.langchain import MPlusChat; MPlusChat()", "llama_index"),
    ],
)
def test_imports_are_cheap(code: str, heavy: str) -> None:
    check = f"{code}\nimport sys\nassert {heavy!r} not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_help_does_not_load_torch() -> None:
    code = "import sys; sys.argv = ['mplus', '--help']\nfrom mplus.cli.app import main\ntry: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "ask" in result.stdout


def test_all_our_errors_are_one_family() -> None:
    import inspect

    from mplus import errors

    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert all(issubclass(c, mplus.MPlusError) for c in classes)
    assert {c.__name__ for c in classes} <= set(mplus.__all__)
    assert all(c.__name__ in (errors.__doc__ or "") for c in classes)
