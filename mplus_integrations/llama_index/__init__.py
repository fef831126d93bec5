"""M+ for LlamaIndex: an LLM with latent memory, memory for agents and chat engines, and an index without embeddings.

Names are imported at their first use; all need only ``llama-index-core``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
