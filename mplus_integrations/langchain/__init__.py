"""M+ for LangChain: chat model, vector store, retriever, memory and store for agents.

Names are imported at their first use. The chat model and the stores need ``langchain-core``; the middleware
and the LangGraph store need ``langchain``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
