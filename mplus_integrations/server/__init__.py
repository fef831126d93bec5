"""M+ as a server: an OpenAI-compatible endpoint with a memory for each key, an API of memories, and MCP.

Names are imported at their first use. The web server needs the extra ``serve``, MCP the extra ``mcp``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
