"""M+ for LangChain: chat model, vector store, retriever, memory and store for agents.

Names are imported at their first use. The chat model and the stores need ``langchain-core``; the middleware
and the LangGraph store need ``langchain``. Where that is installed, importing this package lets its
``init_chat_model("mplus:smol-135m")`` find the chat model.
"""

from contextlib import suppress

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

with suppress(ImportError):  # without langchain, or where its table of providers has moved
    from langchain.chat_models.base import _BUILTIN_PROVIDERS, _call  # pyright: ignore[reportPrivateUsage]

    _BUILTIN_PROVIDERS.setdefault("mplus", (__name__, "MPlusChat", _call))
