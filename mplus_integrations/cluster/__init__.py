"""M+ on many processes or machines, as a Ray Serve application around the server; needs the extra ``cluster``.

Names are imported at their first use. ``owners``, ``meant``, ``passing`` and ``front`` do not need Ray.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
