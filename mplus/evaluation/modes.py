"""Ways of answering by name, all with the same backbone, the same questions and the same prompts.

closed-book        the question alone
empty-memory       the same, of common questions only: what a memory beside them must not take away
chat               the conversation in which it was told goes on: its messages, then the question
full-context       everything in the prompt, as far as it fits
memoryllm          short-term memory only
mplus              M+ as the weights' own layout says
mplus-late         M+ with recall by late interaction over chunks
mplus-attention    M+ with recall by attention
mplus-published    M+ with recall by the paper's co-trained retriever, where the weights have one
rag-bm25           best passages by BM25 in the prompt, read by the plain backbone
rag-minilm, rag-e5 the same by a sentence embedder
rag-bm25+adapter   best passages read through the trained read adapter, whole and as they stand
rag-bm25+mplus     the same read as M+ reads its memory, turned towards the sentence that answers
rag-minilm+adapter, rag-minilm+mplus, rag-e5+adapter, rag-e5+mplus   the same by a sentence embedder
"""

from collections.abc import Iterator, Sequence

from mplus.config import MemoryConfig, Recall
from mplus.evaluation.baselines import ClosedBook, FullContext, PassageIndex, RetrievalAugmented
from mplus.evaluation.from_memory import Recalling
from mplus.evaluation.in_conversation import InConversation
from mplus.evaluation.memoryllm import Rolling, memoryllm
from mplus.evaluation.passage_search import BM25, E5, MiniLM, install_line
from mplus.evaluation.replies import Answerer, Settings
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import COMMON
from mplus.model import MPlus

SCORERS: dict[str, Recall] = {
    "mplus-late": "late",
    "mplus-attention": "attention",
    "mplus-published": "published",
}
RETRIEVERS: dict[str, type[BM25 | MiniLM | E5]] = {"rag-bm25": BM25, "rag-minilm": MiniLM, "rag-e5": E5}
PASSAGE_READERS: dict[str, dict[str, int]] = {"adapter": {"best_sentence_times": 0}, "mplus": {}}
"""Who reads a retriever's passages as memory, and what is not as in the model's own layout then."""
EMPTY = "empty-memory"
MODES = (
    "closed-book",
    EMPTY,
    "chat",
    "full-context",
    "memoryllm",
    "mplus",
    *SCORERS,
    *RETRIEVERS,
    *(f"{retriever}+{reader}" for reader in PASSAGE_READERS for retriever in RETRIEVERS),
)


def chosen(names: Sequence[str], model: MPlus, config: MemoryConfig) -> list[str]:
    """Names as given, each once; "all" means every way that these weights and the installed packages can do.

    Raises:
        ValueError: An unknown name, or one that these weights cannot do.
    """
    found: list[str] = []
    for name in names:
        if name != "all" and name not in MODES:
            raise ValueError(f"mode={name!r}: expected all, or some of {', '.join(MODES)}.")
        if name in SCORERS and SCORERS[name] not in model.weights.scorers:
            known = ", ".join(sorted(model.weights.scorers))
            raise ValueError(f"mode={name!r}: these weights have no such retriever, only {known}.")
        found += _possible(model, config) if name == "all" else [name]
    return list(dict.fromkeys(found))


def lacking(names: Sequence[str]) -> dict[str, str]:
    """Names whose embedder is not installed, each with how to get it; those of ``all`` that it leaves out."""
    every = [one for name in names for one in (MODES if name == "all" else [name])]
    lines = {name: install_line(RETRIEVERS[head]) for name in every if (head := name.split("+")[0]) in RETRIEVERS}
    return {name: line for name, line in lines.items() if line is not None}


def has_adapter(model: MPlus) -> bool:
    """Whether these weights read memory through a trained adapter."""
    backbone = model.weights.backbone
    return backbone.read_layers is not backbone.write_layers or model.weights.text_backbone is not None


def _possible(model: MPlus, config: MemoryConfig) -> Iterator[str]:
    adapter, missing = has_adapter(model), lacking(MODES)
    for name in MODES:
        same = SCORERS.get(name) == config.recall  # "mplus" is that one
        unknown = name in SCORERS and SCORERS[name] not in model.weights.scorers
        if not (same or unknown or name in missing or ("+" in name and not adapter)):
            yield name


def answerers(
    names: Sequence[str],
    model: MPlus,
    config: MemoryConfig,
    stream: Stream,
    settings: Settings,
    *,
    tops: Sequence[int] = (1, 2, 3),
) -> Iterator[Answerer]:
    """Ways of answering by name; those that read the best k passages once for each k.

    Each is made when its turn has come, so that what one needs is gone before the next.
    """
    indices: dict[str, PassageIndex] = {}
    for name in names:
        retriever, _, reader = name.partition("+")
        if name in ("closed-book", EMPTY):
            yield ClosedBook(model, settings, name=name, only=COMMON if name == EMPTY else None)
        elif name == "chat":
            yield InConversation(model, config, stream, settings)
        elif name == "full-context":
            yield FullContext(model, stream, settings)
        elif name == "memoryllm":
            yield Rolling(name, model, memoryllm(config, model.weights.backbone.window), stream, settings)
        elif retriever in RETRIEVERS:
            if retriever not in indices:
                indices[retriever] = PassageIndex(stream, model.tokenizer, RETRIEVERS[retriever])
            layout = config.model_copy(update=PASSAGE_READERS[reader]) if reader else None
            for top in tops:
                yield RetrievalAugmented(
                    f"{name} top-{top}", model, indices[retriever], settings, top=top, layout=layout
                )
        else:
            recall = SCORERS.get(name, config.recall)
            yield Recalling(name, model, config.model_copy(update={"recall": recall}), stream, settings)
