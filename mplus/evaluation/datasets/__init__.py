"""Tasks read from files in their public formats; ``READERS`` has them by name."""

from mplus.evaluation.datasets.agent_bench import memory_agent_bench
from mplus.evaluation.datasets.beam import beam
from mplus.evaluation.datasets.dialogues import dialogue
from mplus.evaluation.datasets.documents import long_documents
from mplus.evaluation.datasets.drawing import Reader
from mplus.evaluation.datasets.locomo import locomo
from mplus.evaluation.datasets.passages import natural_questions, squad
from mplus.evaluation.datasets.rows import common, rows
from mplus.evaluation.datasets.sessions import longmemeval
from mplus.evaluation.datasets.stories import babi
from mplus.evaluation.datasets.talk import talk

READERS: dict[str, Reader] = {
    "squad": squad,
    "nq": natural_questions,
    "dialogue": dialogue,
    "babi": babi,
    "locomo": locomo,
    "longmemeval": longmemeval,
    "memoryagentbench": memory_agent_bench,
    "beam": beam,
    "longdoc": long_documents,
    "talk": talk,
    "rows": rows,
    "common": common,
}
