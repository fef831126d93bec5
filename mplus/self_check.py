"""Whether a model without a read adapter reads latents as well as text: a short check on facts of our own.

The result is kept by the model's fingerprint, in this process and in the cache folder, so that a model is checked once.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mplus.checkpoint.catalog import cache_root
from mplus.config import MemoryConfig
from mplus.forks import ProcessLock
from mplus.generation.engine import decode
from mplus.generation.requests import Requests
from mplus.generation.row import Row
from mplus.memory.memory import Memory
from mplus.weights import Weights
from mplus.write.writer import Writer

CHECK = 2
"""Number of this check; a later one that asks other questions gets another, and models are then checked again."""
ANSWER_TOKENS = 24
FACTS = (
    ("My sister's name is Ottilie.", "What is my sister's name?", "Ottilie"),
    ("The code of the garage door is 4817.", "What is the code of the garage door?", "4817"),
    ("We are moving to Lisbon in the spring.", "Which city are we moving to?", "Lisbon"),
    ("My dentist is Dr. Brandt.", "Who is my dentist?", "Brandt"),
    ("The parcel is at the kiosk next to the bakery.", "Where is the parcel?", "kiosk"),
    ("Our cat is called Pepper.", "What is our cat called?", "Pepper"),
    ("I am allergic to hazelnuts.", "What am I allergic to?", "hazelnut"),
    ("The meeting with the bank was moved to Thursday.", "On which day is the meeting with the bank?", "Thursday"),
    ("My bicycle is green and has a basket.", "What colour is my bicycle?", "green"),
    ("Grandpa was born in 1938.", "In which year was Grandpa born?", "1938"),
    ("I work as a glassblower.", "What do I work as?", "glassblower"),
    ("The spare key is under the blue flowerpot.", "Where is the spare key?", "flowerpot"),
)
"""What is told, what is asked later, and what the answer has to contain."""
TOLD_TOGETHER = 4
"""Facts in one memory."""
AHEAD = 3
"""So many more facts a model has to answer from latents than from text. The facts are easy: of longer texts models that
answer as many of them either way still read text better (docs/concepts/reading.md)."""
GROUPS = [FACTS[start : start + TOLD_TOGETHER] for start in range(0, len(FACTS), TOLD_TOGETHER)]

How = Literal["latent", "text"]


@dataclass(frozen=True)
class HowRead:
    """How a model reads memory where a memory's layout says ``read="auto"``, and why.

    Attributes:
        read: "latent" or "text".
        reason: Why, in a sentence.
        latent: How many facts of the check were answered from latents; None if there was no check.
        text: How many were answered from text.
        facts: How many were asked.
    """

    read: How
    reason: str
    latent: int | None = None
    text: int | None = None
    facts: int | None = None

    @classmethod
    def measured(cls, latent: int, text: int) -> "HowRead":
        """The result of a check."""
        how: How = "latent" if not text or latent >= text + AHEAD else "text"
        reason = f"no read adapter; of {len(FACTS)} facts the model answers {latent} from latents and {text} from text"
        return cls(how, reason, latent, text, len(FACTS))


class SelfCheck:
    """The check of one model; made when its result is first asked for."""

    def __init__(self, weights: Weights, tokenizer: Any, *, name: str = "", known: HowRead | None = None) -> None:
        """Prepare the check.

        Args:
            weights: The model.
            tokenizer: Its tokenizer.
            name: Its name, by which ``mplus info`` finds the result.
            known: What is known without a check.
        """
        self._weights, self._tokenizer, self._name = weights, tokenizer, name
        self.known = known or self._obvious()
        """The result, once there is one."""
        self._lock = ProcessLock()

    def result(self) -> HowRead:
        """How this model reads: known, kept from an earlier check, or checked now."""
        if self.known is None:
            with self._lock:
                fingerprint = self._weights.fingerprints["late"]
                found = self.known or _CHECKED.get(fingerprint) or kept(fingerprint)
                if found is None:
                    found = self._checked()
                    keep(fingerprint, self._name, found)
                self.known = _CHECKED[fingerprint] = found
        return self.known

    def prefers_text(self) -> bool:
        """Whether this model reads text better."""
        return self.result().read == "text"

    def _obvious(self) -> HowRead | None:
        backbone = self._weights.backbone
        if self._weights.text_backbone is not None:
            return HowRead("text", "the model has a read adapter that was trained on text")
        if backbone.read_layers is not backbone.write_layers:
            return HowRead("latent", "the model has a trained read adapter")
        if self._tokenizer is None:
            return HowRead("latent", "the model has no tokenizer to decode text with")
        return None

    def _checked(self) -> HowRead:
        """Check now: how many facts are answered from memories that are read in either way."""
        told = self._told()
        return HowRead.measured(*(self._right(told, how) for how in ("latent", "text")))

    def _told(self) -> list[Memory]:
        """Memories with a few facts each."""
        config = MemoryConfig.for_window(self._weights.backbone.window)
        initial, fingerprint = self._weights.empty_state(config), self._weights.fingerprints[config.recall]
        memories = [Memory(config, initial, model_fingerprint=fingerprint) for _ in GROUPS]
        writer = Writer(self._weights, self._tokenizer)
        for place in range(TOLD_TOGETHER):
            told = [f"User: {group[place][0]}" for group in GROUPS]
            writer.write(
                memories, told, sources=[None] * len(told), metadata=[None] * len(told), keep_text=False, progress=None
            )
        return memories

    def _right(self, told: Sequence[Memory], how: How) -> int:
        """How many facts are answered if memory is read in one way."""
        requests = Requests(self._weights, self._tokenizer)
        rows: list[Row] = []
        for memory, group in zip(told, GROUPS, strict=True):
            config = memory.config.model_copy(update={"read": how})
            same = Memory(config, memory.state, model_fingerprint=memory.model_fingerprint)
            rows += [
                requests.row(same, self._question(question), max_new_tokens=ANSWER_TOKENS) for _, question, _ in group
            ]
        for _ in decode(self._weights, self._tokenizer, rows, requests.stop_token_ids()):
            pass
        return sum(answer.lower() in row.text.lower() for row, (_, _, answer) in zip(rows, FACTS, strict=True))

    def _question(self, question: str) -> Any:
        if self._tokenizer.chat_template:
            return [{"role": "user", "content": question}]
        return f"Question: {question}\nAnswer:"


_CHECKED: dict[str, HowRead] = {}
"""Results of this process, by fingerprint."""


# --- the cache folder ---------------------------------------------------------------------------------


def records() -> Path:
    """Folder of the results of checks."""
    return cache_root() / "reads"


def keep(fingerprint: str, name: str, found: HowRead) -> None:
    """Keep a result; a cache folder that cannot be written to means that other processes check again."""
    record = {"check": CHECK, "model": name, **asdict(found)}
    try:
        records().mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=records(), prefix=".")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
        Path(path).replace(records() / f"{fingerprint}.json")
    except OSError:
        return


def kept(fingerprint: str) -> HowRead | None:
    """The kept result of a model; None if there is none that this version's check has made."""
    found = _read(records() / f"{fingerprint}.json")
    return None if found is None else found[1]


def kept_of(name: str) -> HowRead | None:
    """The kept result of the model that was loaded by a name."""
    every = [_read(path) for path in sorted(records().glob("*.json"))] if records().is_dir() else []
    return next((found[1] for found in every if found is not None and found[0] == name), None)


def _read(path: Path) -> tuple[str, HowRead] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("check") != CHECK:
            return None
        name = record.pop("model")
        found = HowRead(**record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (name, found) if found.read in ("latent", "text") else None
