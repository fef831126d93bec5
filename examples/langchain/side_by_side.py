"""RAG and M+ side by side on the same documents, drawn.

    pip install matplotlib
    python examples/langchain/side_by_side.py --plot side_by_side.png

RAG finds two passages by their words and pastes them into the prompt of the plain model. M+ has written the
documents into latent memory, and its prompt is the question alone. The model is the same, its reader is not: M+
reads with the adapter that was trained for memory.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from museum import catalogue, questions
from word_store import WordVectorStore

from mplus_integrations.langchain import MPlusChat, MPlusVectorStore


def rag(documents: list[Document]) -> Callable[[str], AIMessage]:
    """Passages found by their words, pasted into the prompt."""
    chat, store = MPlusChat(max_tokens=32), WordVectorStore.from_documents(documents)

    def ask(question: str) -> AIMessage:
        passages = "\n".join(document.page_content for document in store.similarity_search(question, k=2))
        return chat.invoke(f"{passages}\n\n{question}")

    return ask


def latent(documents: list[Document]) -> Callable[[str], AIMessage]:
    """Documents written into memory; the prompt is the question."""
    return MPlusVectorStore.from_documents(documents, chat=MPlusChat(max_tokens=32)).chat.invoke


def measured(ask: Callable[[str], AIMessage], asked: list[tuple[str, str]]) -> tuple[float, float, float]:
    """Share of right answers, tokens of a prompt, and seconds of an answer."""
    right, tokens, started = 0, 0, time.perf_counter()
    for question, expected in asked:
        answer = ask(question)
        right += expected in str(answer.content)
        tokens += answer.usage_metadata["input_tokens"] if answer.usage_metadata else 0
    return right / len(asked), tokens / len(asked), (time.perf_counter() - started) / len(asked)


def draw(sizes: list[int], results: dict[str, list[tuple[float, float, float]]], file: Path) -> None:
    """Three pictures, a line for each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = ["answers that are right", "tokens of a prompt", "seconds of an answer"]
    figure, places = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for number, (place, title) in enumerate(zip(places, titles, strict=True)):
        for way, values in results.items():
            place.plot(sizes, [value[number] for value in values], marker="o", label=way)
        place.set(title=title, xlabel="documents", xticks=sizes, ylim=(0, 1.05 if number == 0 else None))
    places[0].legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[15, 30, 60, 120], help="documents, at most 120")
    parser.add_argument("--questions", type=int, default=15)
    parser.add_argument("--plot", type=Path, default=Path("side_by_side.png"))
    options = parser.parse_args()
    results: dict[str, list[tuple[float, float, float]]] = {"RAG": [], "M+": []}
    print("documents  way   right  prompt tokens  seconds")
    for size in options.pages:
        documents, asked = catalogue(size), questions(options.questions, size)
        for way, make in (("RAG", rag), ("M+", latent)):
            right, tokens, seconds = measured(make(documents), asked)
            results[way].append((right, tokens, seconds))
            print(f"{size:9}  {way:4} {right:6.2f} {tokens:14.0f} {seconds:8.2f}", flush=True)
    draw(options.pages, results, options.plot)
    print(f"drawn in {options.plot}")


if __name__ == "__main__":
    main()
