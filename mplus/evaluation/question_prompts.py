"""How a question is put: the same for every way of answering, with texts before it where it reads texts."""

from collections.abc import Mapping, Sequence

from mplus.evaluation.tasks import PromptStyle

SHORT = "Answer in a few words."
EXAMPLES = (
    (
        "The bakery on Mill Street was founded in 1887 by two sisters, Ada and Mabel Thornton.",
        "Who founded the bakery on Mill Street?",
        "Ada and Mabel Thornton",
    ),
    (
        "Lake Orrin lies 340 metres above sea level and freezes over between December and March.",
        "How high above sea level is Lake Orrin?",
        "340 metres",
    ),
    (
        "The second expedition had to turn back because its sledges were damaged by salt water.",
        "Why did the second expedition turn back?",
        "its sledges were damaged by salt water",
    ),
)
"""Worked examples for plain completion, our own."""

ANSWER_TOKENS: Mapping[PromptStyle, int] = {"plain": 64, "short": 24, "completion": 24}
"""Most tokens of an answer: a sentence where nothing shorter is asked for."""

Asked = str | list[dict[str, str]]


def prompt(
    question: str,
    style: PromptStyle,
    *,
    texts: Sequence[str] = (),
    examples: int = 0,
    before: Sequence[tuple[str, str]] = (),
) -> Asked:
    """A question as it is put.

    Args:
        question: What is asked.
        style: How.
        texts: What stands before it in the prompt, for ways of answering that read text.
        examples: Worked examples between texts and question (only in plain completion): without training a
            small model reads much better with some.
        before: Questions that were asked just before, each with the answer that was given.
    """
    read = "".join(f"{text.strip()}\n\n" for text in texts)
    if style == "completion":
        shown = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for _, asked, answer in EXAMPLES[:examples])
        passages = "".join(f"{passage}\n\n" for passage, _, _ in EXAMPLES[:examples])
        shown += "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in before)
        return f"{passages}{read}{shown}Question: {question}\nAnswer:"
    asked = question if style == "plain" else f"{question}\n{SHORT}"
    return [*exchanges(before), {"role": "user", "content": read + asked}]


def exchanges(before: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions and answers as messages."""
    pairs = ((("user", asked), ("assistant", answer)) for asked, answer in before)
    return [{"role": role, "content": text} for pair in pairs for role, text in pair]


def stops(style: PromptStyle) -> list[str]:
    """Strings that end an answer, beside the end token."""
    return ["\n"] if style == "completion" else []


def query(asked: Asked) -> str:
    """The text that recall searches for: the last message, or all of a completion."""
    if isinstance(asked, str):
        return asked
    last: Mapping[str, str] = asked[-1]
    return last["content"]


def characters(asked: Asked) -> int:
    """How long a prompt is."""
    return len(asked) if isinstance(asked, str) else sum(len(message["content"]) for message in asked)
