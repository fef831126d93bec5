"""Conversations, notes and short documents as people write them, with questions, to learn from and to choose by.

The texts are written, not generated. Names, places, numbers and dates stand in typed slots, so that they can
be redrawn without end (`slots.drawn`) and no value can be learnt by heart.
"""

from mplus.training.talk.corpus import DEV_WRITERS, talk_items
from mplus.training.talk.format import Item, Message, Question, Slot
from mplus.training.talk.slots import as_written, drawn

__all__ = ["DEV_WRITERS", "Item", "Message", "Question", "Slot", "as_written", "drawn", "talk_items"]
