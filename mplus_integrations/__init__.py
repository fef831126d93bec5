"""Adapters of M+ for LangChain and LlamaIndex; importing one needs only its own framework."""

import lazy_loader

import mplus

if "MPlus" not in getattr(mplus, "__all__", ()):
    raise ImportError(
        f"The package 'mplus' in {mplus.__path__[0]} is another project's, or overwritten by it: it has no MPlus. "
        "mplus_integrations needs the one that the distribution 'mplus-memory' installs: "
        "pip uninstall -y mplus && pip install --force-reinstall --no-deps mplus-memory"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
