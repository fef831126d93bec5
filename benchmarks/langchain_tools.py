"""How often the default model passes the tests of LangChain's standard suite that ask for sense.

    python benchmarks/langchain_tools.py --runs 20

Each is run once greedily, as in the test suite, and then with sampled answers (temperature 0.7), seeds 1, 2, ….
"""

import argparse
import asyncio
import inspect
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from mplus_integrations import MPlusChat

TESTS = ("test_tool_calling", "test_tool_calling_async", "test_agent_loop", "test_unicode_tool_call_integration")


class Suite(ChatModelIntegrationTests):
    """The standard suite, for one model."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """What the suite asks for."""
        return MPlusChat


def passes(name: str, chat: MPlusChat) -> bool:
    """Whether a test of the suite passes with a model."""
    try:
        found: Any = getattr(Suite(), name)(chat)
        if inspect.iscoroutine(found):
            asyncio.run(found)
    except AssertionError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--runs", type=int, default=20, help="sampled runs of each test")
    options = parser.parse_args()
    for name in TESTS:
        greedy = passes(name, MPlusChat(model=options.model, max_tokens=200))
        sampled = [
            passes(name, MPlusChat(model=options.model, max_tokens=200, temperature=0.7, seed=seed))
            for seed in range(1, options.runs + 1)
        ]
        print(f"{name}: greedy {'passes' if greedy else 'fails'}; sampled {sum(sampled)} of {len(sampled)}", flush=True)


if __name__ == "__main__":
    main()
