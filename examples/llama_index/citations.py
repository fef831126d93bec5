"""Ask this project's own documentation: every answer cites the passages it was read from.

    python examples/llama_index/citations.py

The question alone stands in the prompt. The documents are read as latent memory, and the same retriever that
recalls them there names the source nodes.
"""

import sys
import time
from pathlib import Path

from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter

from mplus_integrations.llama_index import MPlusIndex, MPlusLLM

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = ("recall.md", "evaluation.md")
NOTE = "The reading room is on the second floor, beside the stairs. Its code is 4719."
# What is asked, and where the answer is.
QUESTIONS = [
    ("On which floor is the reading room?", "note.txt"),
    ("What is the code of the reading room?", "note.txt"),
    ("How are chunks scored?", "recall.md"),
]


def main() -> int:
    llm = MPlusLLM(max_tokens=32)
    documents = [Document(text=(DOCS / page).read_text(encoding="utf-8"), id_=page) for page in PAGES]
    documents.append(Document(text=NOTE, id_="note.txt"))
    started = time.perf_counter()
    index = MPlusIndex.from_documents(
        documents, llm=llm, transformations=[SentenceSplitter(chunk_size=160, chunk_overlap=0)]
    )
    print(f"{len(index.index_struct.nodes)} nodes in memory after {time.perf_counter() - started:.0f} s")

    engine = index.as_query_engine(similarity_top_k=2, streaming=True)
    right = 0
    for question, expected in QUESTIONS:
        print(f"\n{question}\n  ", end="")
        response = engine.query(question)
        for piece in response.response_gen:
            print(piece, end="", flush=True)
        print()
        for number, cited in enumerate(response.source_nodes, start=1):
            text = " ".join(cited.node.get_content().split())
            print(f"  [{number}] {cited.node.ref_doc_id}, {cited.score:.2f}: {text[:80]}…")
        right += response.source_nodes[0].node.ref_doc_id == expected

    # A correction replaces what was written; a page that is gone is forgotten, with everything it left.
    index.update_ref_doc(Document(text=NOTE.replace("second", "fourth"), id_="note.txt"))
    index.delete_ref_doc("evaluation.md")
    answer = index.as_query_engine(similarity_top_k=1).query(QUESTIONS[0][0])
    print(f"\nAfter the correction: {str(answer).strip()}")
    print(f"{right} of {len(QUESTIONS)} cited from the right page first")
    return 0 if right > len(QUESTIONS) / 2 and "fourth" in str(answer) else 1


if __name__ == "__main__":
    sys.exit(main())
