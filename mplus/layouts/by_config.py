"""Layouts by name."""

from collections.abc import Mapping

from mplus.config import LayoutName, MemoryConfig
from mplus.layouts.layout import Layout
from mplus.layouts.single_tokens import SingleTokens
from mplus.layouts.whole_chunks import WholeChunks

LAYOUTS: Mapping[LayoutName, Layout] = {"chunk": WholeChunks(), "token": SingleTokens()}
"""The layouts by the name that ``MemoryConfig.layout`` has."""


def layout_of(config: MemoryConfig) -> Layout:
    """The layout that a config names."""
    return LAYOUTS[config.layout]
