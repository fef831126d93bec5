"""Passages that the backbone makes up, and questions about them that it has learnt to ask.

A few thousand questions about a few articles are soon known by heart. A language model can go on with a sentence
in as many ways as are wanted, and an adapter trained on the questions there are asks more about what came out. What
is false in them does no harm: to be read is what they are for. A question counts where the same adapter, asked it in
turn, finds the answer it was asked for.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mplus.backbone.adapters import Adapter
from mplus.backbone.backbone import Backbone
from mplus.evaluation.metrics import token_f1
from mplus.generation.prompt import encode_prompt
from mplus.model import MPlus
from mplus.training.chunk.answer_sentence import sentences
from mplus.training.chunk.questions import Question
from mplus.training.chunk.read_adapter import ReaderSettings
from mplus.training.chunk.sample import AsRead, Sample, encode_sample
from mplus.training.chunk.topics import topic

ASKER = ReaderSettings(steps=400, batch=16, learning_rate=1e-3, warmup=20, decay=200)
ASKED = 0.65
"""Share of the asker's samples that ask a question; the others answer one."""
PASSAGE_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 160, 48, 16
FROM_TEXT = 0.6
"""Share of the passages that continue the beginning of a given sentence; the others are about a topic."""
ATTEMPTS = 4
"""Questions that are asked about each passage."""
FOUND_AGAIN = 0.6
"""Least token F1 between the answer that is given and the one that was asked for."""
FEWEST_WORDS, MOST_WORDS = 35, 160
VARIED = 0.8
"""A passage has so many different runs of three words, of those it has: a small model repeats itself."""
BATCH = {"cpu": 16, "cuda": 1536}

Say = Callable[[str], None]


class AskingSamples:
    """Samples that teach to ask about a passage, and to answer: without memory, the passage in the prompt.

    Args:
        tokenizer: The backbone's.
        passages: Texts.
        questions: About them; numbers of passages are places in ``passages``.
    """

    def __init__(self, tokenizer: Any, passages: Sequence[str], questions: Sequence[Question]) -> None:
        self._tokenizer, self._passages, self._questions = tokenizer, passages, questions

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples."""
        return [self._one(rng, rng.choice(self._questions)) for _ in range(count)]

    def _one(self, rng: random.Random, question: Question) -> Sample:
        passage = self._passages[question.passages[0]]
        if rng.random() < ASKED:
            reply = f" {rng.choice(question.answers)}\nQuestion: {question.text}"
            return encode_sample(self._tokenizer, AsRead(()), asking(passage), reply)
        return encode_sample(self._tokenizer, AsRead(()), answering(passage, question.text), f" {question.answers[0]}")


def asking(passage: str) -> str:
    """The prompt for a question and its answer."""
    return f"{passage}\n\nAnswer:"


def answering(passage: str, question: str) -> str:
    """The prompt for an answer."""
    return f"{passage}\n\nQuestion: {question}\nAnswer:"


class Inventor:
    """Makes passages and questions up.

    Args:
        model: The backbone; where it is, texts are generated.
        asker: Adapter that has learnt from ``AskingSamples``.
        texts: Whose sentences are begun with.
        seed: Decides everything.
    """

    def __init__(self, model: MPlus, asker: Adapter, texts: Sequence[str], seed: int) -> None:
        self._model, self._asker, self._texts, self._seed = model, asker, texts, seed

    def invent(self, count: int, say: Say) -> list[tuple[str, list[tuple[str, str]]]]:
        """Passages with questions and answers; fewer than ``count``, for not every one can be asked about."""
        rng = random.Random(f"{self._seed}/invented")
        torch.manual_seed(rng.getrandbits(63))
        backbone = self._model.weights.backbone
        starts = [self._start(rng) for _ in range(count)]
        with Generator(self._model, None) as plain:
            written = plain.sampled([ids for ids, _ in starts], PASSAGE_TOKENS, temperature=0.9)
        passages = [
            passage
            for (_, begun), text in zip(starts, written, strict=True)
            if (passage := whole_passage(begun + text)) is not None
        ]
        say(f"invented: {len(passages)} of {count} passages are fit to be asked about")
        tokenizer = self._model.tokenizer
        with Generator(self._model, backbone.reading_through(self._asker, merge=True)) as asker:
            tried = [passage for passage in passages for _ in range(ATTEMPTS)]
            asked = asker.sampled(
                [encode_prompt(tokenizer, asking(p)).input_ids for p in tried], QUESTION_TOKENS, temperature=0.8
            )
            fit = list(dict.fromkeys(fitting(tried, asked)))
            answered = asker.sampled(
                [encode_prompt(tokenizer, answering(p, question)).input_ids for p, question, _ in fit], ANSWER_TOKENS
            )
        found: dict[str, list[tuple[str, str]]] = {}
        for (passage, question, answer), given in zip(fit, answered, strict=True):
            if token_f1(given.strip(), [answer]) >= FOUND_AGAIN:
                found.setdefault(passage, []).append((question, answer))
        kept = sum(map(len, found.values()))
        say(f"invented: {kept} of {len(fit)} questions, about {len(found)} passages, are answered as asked for")
        return list(found.items())

    def _start(self, rng: random.Random) -> tuple[Sequence[int], str]:
        """Prompt tokens of a passage, and the part of them that belongs to the passage."""
        tokenizer = self._model.tokenizer
        if rng.random() < FROM_TEXT or not getattr(tokenizer, "chat_template", None):
            words = rng.choice(sentences(rng.choice(self._texts)) or [""]).split()
            begun = " ".join(words[: rng.randint(5, 14)])
            return encode_prompt(tokenizer, begun).input_ids, begun
        request = f"Write one paragraph of an encyclopedia about {topic(rng)}. Give names, dates and numbers."
        return encode_prompt(tokenizer, [{"role": "user", "content": request}]).input_ids, ""


def whole_passage(text: str) -> str | None:
    """A generated text up to its last whole sentence; None where it is too short or repeats itself."""
    text = re.sub(r"\s+", " ", text.split("\n\n")[0] if len(text.split("\n\n")[0].split()) >= FEWEST_WORDS else text)
    parts = sentences(text.strip())
    if parts and not re.search(r"[.!?][\"')\]]*$", parts[-1]):
        parts = parts[:-1]
    passage = " ".join(parts)
    words = passage.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS or len(set(runs)) < VARIED * len(runs):
        return None
    return passage


def fitting(passages: Iterable[str], asked: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Passage, question and answer of what was asked well: the answer stands in the passage, not in the question."""
    for passage, text in zip(passages, asked, strict=True):
        answer, _, question = text.partition("\nQuestion:")
        answer, question = answer.strip(), question.strip()
        is_question = question.endswith("?") and 4 <= len(question.split()) <= 40 and "\n" not in question
        is_answer = answer in passage and 0 < len(answer.split()) <= 12
        if is_question and is_answer and answer.lower() not in question.lower():
            yield passage, question, answer


class Generator:
    """transformers' own generation without memory, while it is open.

    Args:
        model: The model.
        through: Whose layers that read generate; None: the layers as they are without an adapter.
    """

    def __init__(self, model: MPlus, through: Backbone | None) -> None:
        self._backbone, self._tokenizer = model.weights.backbone, model.tokenizer
        self._model: Any = self._backbone.model if through is None else through.reading_model

    def __enter__(self) -> "Generator":
        self._implementation: Any = self._backbone.config._attn_implementation
        self._backbone.model.set_attn_implementation("sdpa")
        return self

    def __exit__(self, *_: object) -> None:
        self._backbone.model.set_attn_implementation(self._implementation)

    @torch.inference_mode()
    def sampled(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, temperature: float = 0.0) -> list[str]:
        """The continuation of each prompt; at temperature 0 the likeliest one."""
        size = BATCH.get(self._backbone.device.type, 16)
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        end = self._tokenizer.eos_token_id
        options: dict[str, Any] = {"do_sample": False}
        if temperature:
            options = {"do_sample": True, "temperature": temperature, "top_p": 0.95, "top_k": 0}
        replies = [""] * len(prompts)
        for first in range(0, len(order), size):
            some = order[first : first + size]
            ids, mask = _left_padded([prompts[n] for n in some], end)
            device = self._backbone.device
            made = self._model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens,
                eos_token_id=end, pad_token_id=end, **options,
            )  # fmt: skip
            for number, row in zip(some, made[:, ids.shape[1] :].tolist(), strict=True):
                row = row[: row.index(end)] if end in row else row
                replies[number] = self._tokenizer.decode(row, skip_special_tokens=True)
        return replies


def _left_padded(prompts: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), fill)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def write_squad(path: Path, made: Iterable[tuple[str, Sequence[tuple[str, str]]]]) -> None:
    """Passages and questions as SQuAD JSON, put in place in one step."""
    paragraphs = [
        {"context": passage, "qas": [{"question": q, "answers": [{"text": a}]} for q, a in asked]}
        for passage, asked in made
    ]
    writing = path.with_name(f".{path.name}")
    writing.write_text(json.dumps({"data": [{"title": "invented", "paragraphs": paragraphs}]}), encoding="utf-8")
    writing.replace(path)
