"""Ask a few notes: every answer cites the note it was read from, a correction counts at once, a deletion for good.

    python examples/llama_index/citations.py

The question alone stands in the prompt. The notes are read as latent memory, and the same retriever that recalls
them there names the source nodes.
"""

import sys

from llama_index.core import Document

from mplus_integrations.llama_index import MPlusIndex, MPlusLLM

NOTES = {
    "house.md": "The spare key is in the blue teapot on the kitchen shelf. The boiler is behind the green door.",
    "library.md": "The library opens at nine in the morning. On Sundays it opens at noon and closes at four.",
    "family.md": "My sister Ingrid lives in Toronto. My brother Oskar is a piano tuner in Vienna.",
}
# What is asked, and which note must be cited first.
QUESTIONS = [
    ("Where is the spare key?", "house.md"),
    ("Where does my sister Ingrid live?", "family.md"),
]


def main() -> int:
    documents = [Document(text=text, id_=name) for name, text in NOTES.items()]
    index = MPlusIndex.from_documents(documents, llm=MPlusLLM(max_tokens=24))
    engine = index.as_query_engine(similarity_top_k=2, streaming=True)
    right = 0
    for question, expected in QUESTIONS:
        print(f"{question}\n  ", end="")
        response = engine.query(question)
        for piece in response.response_gen:
            print(piece, end="", flush=True)
        print()
        for number, cited in enumerate(response.source_nodes, start=1):
            print(f"  [{number}] {cited.node.ref_doc_id}, {cited.score:.2f}: {cited.node.get_content()[:60]}…")
        right += response.source_nodes[0].node.ref_doc_id == expected

    # A correction replaces what was written; a note that is gone is forgotten, with everything it left.
    index.update_ref_doc(Document(text=NOTES["house.md"].replace("blue teapot", "red vase"), id_="house.md"))
    index.delete_ref_doc("family.md")
    print(f"After the correction: {str(index.as_query_engine().query(QUESTIONS[0][0])).strip()}")
    print(f"{right} of {len(QUESTIONS)} cited the right note first; left in the index: {', '.join(index.ref_doc_info)}")
    return 0 if right == len(QUESTIONS) and set(index.ref_doc_info) == {"house.md", "library.md"} else 1


if __name__ == "__main__":
    sys.exit(main())
