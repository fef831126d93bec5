"""An application as it was: chunks are embedded, and the text of the best ones is pasted into the prompt.

    python examples/llama_index/rag_before.py

``rag_after.py`` is the same application on latent memory; two lines differ.
"""

import sys

from llama_index.core import Document, Settings
from llama_index.core.indices import VectorStoreIndex
from words import WordCounts

from mplus_integrations.llama_index import MPlusLLM

NOTES = {
    "house.md": "The spare key is in the blue teapot on the kitchen shelf. The boiler is behind the green door.",
    "library.md": "The library opens at nine in the morning. On Sundays it opens at noon and closes at four.",
    "family.md": "My sister Ingrid lives in Toronto. My brother Oskar is a piano tuner in Vienna.",
}
QUESTIONS = [
    ("Where is the spare key?", "teapot"),
    ("Where does my sister Ingrid live?", "Toronto"),
    ("When does the library open on Sundays?", "noon"),
]


def main() -> int:
    Settings.llm = MPlusLLM(max_tokens=24)
    Settings.embed_model = WordCounts()
    documents = [Document(text=text, id_=name) for name, text in NOTES.items()]
    index = VectorStoreIndex.from_documents(documents)
    engine = index.as_query_engine(similarity_top_k=1)
    right = 0
    for question, expected in QUESTIONS:
        response = engine.query(question)
        right += expected.lower() in str(response).lower()
        print(f"- {question}\n  {str(response).strip()}  [{response.source_nodes[0].node.ref_doc_id}]")
    print(f"{right} of {len(QUESTIONS)} right")
    return 0 if right > len(QUESTIONS) / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
