"""Tasks read from files in their public formats; ``READERS`` has them by name."""

from mplus.evaluation.readers.dialogues import dialogue
from mplus.evaluation.readers.documents import long_documents
from mplus.evaluation.readers.drawing import Reader
from mplus.evaluation.readers.locomo import locomo
from mplus.evaluation.readers.passages import natural_questions, squad
from mplus.evaluation.readers.stories import babi

READERS: dict[str, Reader] = {
    "squad": squad,
    "nq": natural_questions,
    "dialogue": dialogue,
    "babi": babi,
    "locomo": locomo,
    "longdoc": long_documents,
}
