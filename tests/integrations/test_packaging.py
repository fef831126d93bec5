"""Importing one adapter needs its framework and no other; what is declared is what is needed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

BLOCKED = """
import sys

BLOCKED = {blocked!r}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
{code}
left = sorted(name for name in sys.modules if name.partition(".")[0] in BLOCKED)
assert not left, left
"""
LANGCHAIN = ("langchain", "langchain_core", "langchain_community", "langchain_classic", "langgraph", "langsmith")
LLAMA_INDEX = ("llama_index", "llama_index_instrumentation", "workflows", "llama_cloud")
USES = {
    "llama_index": """
from llama_index.core import Document
from llama_index.core.llms import ChatMessage
from mplus.testing import tiny_model
import mplus_integrations
import mplus_integrations.llama_index as ours
for name in ours.__all__:
    getattr(ours, name)
llm = mplus_integrations.MPlusLLM(model=tiny_model(num_hidden_layers=1), max_tokens=2)
memory = mplus_integrations.MPlusMemory.from_defaults(llm=llm)
memory.put(ChatMessage(content="Hello."))
llm.chat(memory.get())
index = mplus_integrations.MPlusIndex.from_documents([Document(text="Pears.")], llm=llm)
index.as_query_engine().query("What?")
""",
    "langchain": """
from mplus.testing import tiny_model
import mplus_integrations
import mplus_integrations.langchain as ours
for name in ours.__all__:
    getattr(ours, name)
mplus_integrations.MPlusChat(model=tiny_model(num_hidden_layers=1), max_tokens=2).invoke("Hello?")
""",
}


def run(code: str, blocked: tuple[str, ...]) -> None:
    script = BLOCKED.format(blocked=set(blocked), code=code)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(("adapter", "blocked"), [("llama_index", LANGCHAIN), ("langchain", LLAMA_INDEX)])
def test_acceptance_2_one_adapter_needs_no_other_framework(adapter: str, blocked: tuple[str, ...]) -> None:
    run(USES[adapter], blocked)


def test_the_package_itself_needs_neither() -> None:
    run("import mplus_integrations; dir(mplus_integrations)", (*LANGCHAIN, *LLAMA_INDEX, "torch", "transformers"))


def test_what_a_missing_framework_breaks_names_it() -> None:
    code = "import mplus_integrations\ntry:\n    mplus_integrations.MPlusLLM\nexcept ModuleNotFoundError as e:\n    assert 'llama_index' in str(e)\nelse:\n    raise AssertionError"
    run(code, LLAMA_INDEX)


def test_extras_declare_one_framework_each() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert [name.partition(">")[0] for name in extras["llama-index"]] == ["llama-index-core"]
    assert not any("llama" in name for extra in ("langchain", "agents") for name in extras[extra])
    assert not any("lang" in name or "llama" in name for name in PROJECT["project"]["dependencies"])


def test_llamahub_metadata_names_importable_classes() -> None:
    import mplus_integrations

    hub = PROJECT["tool"]["llamahub"]
    assert hub["import_path"] == "mplus_integrations.llama_index"
    for name in hub["class_authors"]:
        assert name in mplus_integrations.__all__
        assert getattr(mplus_integrations, name).__name__ == name
