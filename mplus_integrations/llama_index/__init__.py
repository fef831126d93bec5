"""M+ for LlamaIndex: an LLM that remembers, memory for agents and chat engines, and an index that embeds nothing.

Only what is asked for is imported; all of it needs ``llama-index-core`` and nothing else.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
