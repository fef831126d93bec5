"""How a token is decoded fastest on a CPU: dtypes, int8 weights, torch.compile, and what each does to the answer.

    python benchmarks/cpu_decode.py [--sides float32 auto bfloat16 int8 compile] [--prefix 512] [--rows 1] [--facts 40]

"auto" is float32 with ``decode_dtype="auto"``. Milliseconds of processor time of this thread per token over a memory
of ``--prefix`` tokens for ``--rows`` users, sides in turn; the least and the median. Beside it, in turn with them, how
fast this thread reads memory: the share of that at which weights are read. Use one thread (OMP_NUM_THREADS=1). What it
does to the answer: how much the next-token distributions differ from float32's (mean KL divergence in nats along
float32's own answer), and how many of its tokens stay the likeliest; and with ``--facts``, how many answers about that
many facts in one memory are word for word the first side's.

Also what starting costs (``--starts``): importing the package, and making a model from weights on disk.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report
import torch

import mplus
from mplus.backbone.few_rows import FewRowsLinear
from mplus.evaluation.evaluation_settings import EvaluationSettings
from mplus.evaluation.experiment import read_task
from mplus.evaluation.question_prompts import prompt
from mplus.generation.prompt import Prompt
from mplus.read.decode import Reading
from mplus.read.prefill import prefill


def calibration_ids(model: mplus.MPlus, count: int) -> list[int]:
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    ids: list[int] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def load(model: str, side: str) -> mplus.MPlus:
    dtype = "float32" if side in ("auto", "compile") else side.removesuffix("+auto")
    copies = "auto" if side.endswith("auto") else None
    loaded = mplus.MPlus.from_pretrained(model, device="cpu", dtype=dtype, decode_dtype=copies)
    if side == "compile":
        for layers in (loaded.weights.backbone.read_layers, loaded.weights.backbone.write_layers):
            for layer in layers:
                layer.mlp.forward = torch.compile(layer.mlp.forward, dynamic=False)
    return loaded


def reading(model: mplus.MPlus, prefix: int, rows: int = 1) -> tuple[Reading, torch.Tensor]:
    """A question that has been read for some users, and the logits after it."""
    memory = model.new_memory()
    model.write(memory, calibration_ids(model, prefix), source="text")
    ids = calibration_ids(model, 400)[-32:]
    step = prefill(model.weights, [model.read_request(memory, Prompt(tuple(ids), (0, 32)))] * rows)
    return step.reading, step.logits[0, -1]


def seconds_to_start(code: str) -> float:
    """Seconds of a fresh Python that runs ``code``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def weight_bytes(model: mplus.MPlus) -> int:
    """Bytes of weights that decoding a token reads: those of every linear layer once, in the copy that is used."""
    backbone, bytes_of = model.weights.backbone, {"float16": 2, "bfloat16": 2, "int8": 1}
    found = 0
    for tree in (backbone.read_layers, backbone.model.get_output_embeddings()):
        for module in tree.modules():
            if isinstance(module, torch.nn.Linear | FewRowsLinear):
                copy = module.chosen[1] if isinstance(module, FewRowsLinear) else "plain"
                found += module.weight.numel() * bytes_of.get(copy, module.weight.element_size())
    return found


def answers_of(model: mplus.MPlus, facts: int) -> list[str]:
    """Answers about facts that were told in one memory."""
    task = read_task(EvaluationSettings.model_validate({"task": "facts", "questions": facts, "unanswerable": 0}), {})
    memory = model.new_memory()
    for name, text in task.contexts.items():
        model.write(memory, text, source=name)
    found: list[str] = []
    for first in range(0, len(task.questions), 8):
        some = [prompt(question.text, task.style) for question in task.questions[first : first + 8]]
        found += [answer.text for answer in model.generate_batch([memory] * len(some), some, max_new_tokens=12)]
    return found


def read_seconds(ones: torch.Tensor) -> float:
    """Seconds of this thread to read a tensor that no cache holds."""
    started = time.thread_time()
    ones.sum()
    return time.thread_time() - started


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--sides", nargs="+", default=["float32", "auto", "bfloat16", "int8", "compile"])
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--facts", type=int, default=0)
    parser.add_argument("--starts", action="store_true")
    arguments = parser.parse_args()
    models = {side: load(arguments.model, side) for side in arguments.sides}
    going = {side: reading(model, arguments.prefix, arguments.rows) for side, model in models.items()}
    answers: dict[str, list[torch.Tensor]] = {side: [logits.float()] for side, (_, logits) in going.items()}
    seconds: dict[str, list[float]] = {side: [] for side in going}
    ones, reads = torch.ones(2**26), list[float]()
    for _ in range(arguments.tokens):
        # Everybody follows the first side's answer, so that distributions can be compared.
        token = int(answers[arguments.sides[0]][-1].argmax())
        for side, (state, _) in going.items():
            started = time.thread_time()
            logits = state.decode([token] * arguments.rows)[0]
            seconds[side].append(time.thread_time() - started)
            answers[side].append(logits.float())
        reads.append(read_seconds(ones))
    bandwidth = ones.nbytes / min(reads)
    told = {side: answers_of(model, arguments.facts) for side, model in models.items()} if arguments.facts else {}
    first = told.get(arguments.sides[0], [])
    expected = torch.stack(answers[arguments.sides[0]]).log_softmax(-1)
    rows: list[dict[str, Any]] = []
    for side in going:
        found = torch.stack(answers[side]).log_softmax(-1)
        rows.append(
            {
                "side": side,
                "ms_per_token": 1e3 * statistics.median(seconds[side]),
                "least": 1e3 * min(seconds[side]),
                "share_of_read_bandwidth": weight_bytes(models[side]) / min(seconds[side]) / bandwidth,
                "kl_divergence": float((expected.exp() * (expected - found)).sum(-1).mean()),
                "same_token": float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
                "same_answers": sum(a == b for a, b in zip(first, told[side], strict=True)) if told else None,
            }
        )
    for row in rows:
        row["time"] = row["least"] / rows[0]["least"]
    print(f"{torch.get_num_threads()} threads, this thread reads {bandwidth / 1e9:.1f} GB/s")
    report.table(rows)
    starts = started(arguments.model) if arguments.starts else {}
    if starts:
        report.table([{"start": name, "seconds": seconds} for name, seconds in starts.items()])

    def draw(axes: Any) -> None:
        axes.bar([row["side"] for row in rows], [row["ms_per_token"] for row in rows])
        axes.set(ylabel="milliseconds per token", title=f"decoding over {arguments.prefix} memory tokens")

    report.save("cpu_decode", {"rows": rows, "starts": starts}, arguments.output, draw)


def started(model: str) -> dict[str, float]:
    """Seconds to start, by what is started."""
    return {
        name: statistics.median(seconds_to_start(code) for _ in range(3))
        for name, code in (
            ("python", "pass"),
            ("import mplus", "import mplus"),
            ("import torch", "import torch"),
            ("MPlusChat()", "from mplus_integrations import MPlusChat; MPlusChat()"),
            ("from_pretrained", f"import mplus; mplus.MPlus.from_pretrained({model!r}, device='cpu')"),
        )
    }


if __name__ == "__main__":
    main()
