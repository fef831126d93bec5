"""M+ as a LangChain chat model."""

from mplus_integrations.langchain.chat import MPlusChat

__all__ = ["MPlusChat"]
