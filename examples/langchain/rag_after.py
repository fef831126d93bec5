"""Questions about a museum's catalogue, answered by retrieval: passages are found and pasted into the prompt.

python examples/langchain/rag_before.py
"""

import argparse

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from museum import catalogue, questions

from mplus_integrations import MPlusChat
from mplus_integrations.langchain import MPlusVectorStore

PROMPT = ChatPromptTemplate.from_template("{context}\n\n{question}")


def pasted(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=40, help="pages of the catalogue")
    parser.add_argument("--questions", type=int, default=5)
    options = parser.parse_args()

    chat = MPlusChat(max_tokens=32)
    store = MPlusVectorStore.from_documents(catalogue(options.pages), chat=chat)
    found = store.as_retriever(search_kwargs={"k": 2})
    chain = {"context": found | pasted, "question": RunnablePassthrough()} | PROMPT | chat | StrOutputParser()

    right = 0
    for question, expected in questions(options.questions, options.pages):
        answer = chain.invoke(question)
        right += expected in answer
        print(f"{question} {answer.strip()} ({'right' if expected in answer else 'wrong: ' + expected})")
    print(f"{right} of {options.questions} right")


if __name__ == "__main__":
    main()
