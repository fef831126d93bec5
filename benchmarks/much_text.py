"""Much text kept as token ids: written, saved, opened and asked; seconds, bytes on disk and host memory.

    python benchmarks/much_text.py [--texts train.json.gz] [--tokens 1000000] [--questions 4] [--output results]

Texts are those of a file, over and over if there are too few, with personal facts (generated, of the kind nobody
trained on) evenly in between; the questions ask for those. Each question is asked twice of the opened memory: cold,
when no keys and values for it were made, and warm. "seconds" is time, "processor" this process's processor time,
"resident_MB" what the process has grown by since the model was loaded. ``--model tiny`` checks the script itself.
"""

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import report
from kept_as_ids import host_bytes

import mplus
from mplus.evaluation.data_files import passages
from mplus.evaluation.facts import Fact
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.personas import persona
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.testing import tiny_model

ANSWER_TOKENS = 24
PART_TOKENS = 8192
"""About so many tokens are written in one call, under one name."""


def parts(model: mplus.MPlus, texts: Sequence[str], tokens: int, facts: Sequence[Fact]) -> Iterator[str]:
    """Parts of the text, until there are enough; facts come at even distances."""
    part, size, written, left = list[str](), 0, 0, list(facts)
    for text in cycle(texts):
        if left and written + size >= tokens * (len(facts) - len(left)) // len(facts):
            part.append(left.pop(0).statement)
        part.append(text)
        size += model.count_tokens(text)
        if size >= PART_TOKENS or written + size >= tokens:
            yield "\n\n".join(part)
            part, size, written = [], 0, written + size
        if written >= tokens:
            return


class Clock:
    """Notes what each step takes, and prints it as it comes."""

    def __init__(self) -> None:
        self.before, self.rows = resident(), list[dict[str, Any]]()

    def timed(self, step: str, work: Callable[[], Any]) -> Any:
        """The result of a step."""
        started, busy = time.perf_counter(), time.process_time()
        result = work()
        seconds, processor = time.perf_counter() - started, time.process_time() - busy
        gc.collect()
        row = {"step": step, "seconds": seconds, "processor": processor, "resident_MB": resident() - self.before}
        self.rows.append(row)
        print(row, flush=True)
        return result


def resident() -> float:
    """MB of this process in host memory."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def written(model: mplus.MPlus, memory: mplus.Memory, given: Any, facts: Sequence[Fact]) -> int:
    """Write all parts; returns the tokens of text that went in."""
    texts = [text for path in given.texts for text in passages(path)]
    if not texts:
        words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
        texts = [paragraph for paragraph in words.split("\n\n") if paragraph.strip()]
    for number, part in enumerate(parts(model, texts, given.tokens, facts)):
        model.write(memory, part, source=f"part-{number}")
    return memory.state.text_tokens


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=4)
    given = parser.parse_args()
    is_tiny = given.model == "tiny"
    model = tiny_model() if is_tiny else mplus.MPlus.from_pretrained(given.model, device="cpu", dtype="float32")
    facts = [told.fact for told in persona(random.Random(7), "dev", given.questions, updated=0)]
    config = mplus.MemoryConfig.model_validate(model.memory_config.model_dump() | {"long_term_keep": "ids"})
    memory, clock = model.new_memory(config=config), Clock()
    tokens = clock.timed("written", lambda: written(model, memory, given, facts))
    held = host_bytes(memory.state)
    with tempfile.TemporaryDirectory(prefix="mplus-much-") as folder:
        place = Path(folder) / "memory"
        clock.timed("saved", lambda: memory.save(place))
        disk = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        del memory
        opened = clock.timed("opened", lambda: mplus.Memory.load(place, model))
        right = list[bool]()
        for fact in facts:
            SPARE_PREFIXES.clear()
            messages = [{"role": "user", "content": fact.question}]
            ask = lambda m=messages: model.generate(opened, m, max_new_tokens=ANSWER_TOKENS)
            answer = clock.timed("asked, cold", ask)
            clock.timed("asked, warm", ask)
            right.append(contains_answer(answer.text, [fact.answer]))
    found = {
        "text_tokens": tokens,
        "bytes_on_disk": disk,
        "bytes_in_host_memory": held,
        "kB_on_disk_per_1000_tokens": disk / tokens,
        "kB_in_host_memory_per_1000_tokens": held / tokens,
        "right": statistics.mean(right),
    }
    print(found)
    report.table(clock.rows)
    report.write("much_text", {**found, "rows": clock.rows}, given.output)


if __name__ == "__main__":
    main()
