"""How a token is decoded fastest on a CPU: dtypes, int8 weights, torch.compile, and what each does to the answer.

    python benchmarks/cpu_decode.py [--sides float32 bfloat16 int8 compile] [--prefix 512]

Milliseconds per token over a memory of ``--prefix`` tokens, sides in turn, medians. What it does to the answer: how
much the next-token distributions differ from float32's (mean KL divergence in nats along float32's own answer), and
how many of its tokens stay the likeliest.

Also what starting costs: importing the package, and making a model from weights on disk.
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
from mplus.generation.prompt import Prompt
from mplus.read.decode import Reading
from mplus.read.prefill import prefill


def calibration_ids(model: mplus.MPlus, count: int) -> list[int]:
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    ids: list[int] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def load(model: str, side: str) -> mplus.MPlus:
    loaded = mplus.MPlus.from_pretrained(model, device="cpu", dtype="float32" if side == "compile" else side)
    if side == "compile":
        for layers in (loaded.weights.backbone.read_layers, loaded.weights.backbone.write_layers):
            for layer in layers:
                layer.mlp.forward = torch.compile(layer.mlp.forward, dynamic=False)
    return loaded


def reading(model: mplus.MPlus, prefix: int) -> tuple[Reading, torch.Tensor]:
    """A question that has been read, and the logits after it."""
    memory = model.new_memory()
    model.write(memory, calibration_ids(model, prefix), source="text")
    ids = calibration_ids(model, 400)[-32:]
    step = prefill(model.weights, [model.read_request(memory, Prompt(tuple(ids), (0, 32)))])
    return step.reading, step.logits[0, -1]


def seconds_to_start(code: str) -> float:
    """Seconds of a fresh Python that runs ``code``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--sides", nargs="+", default=["float32", "bfloat16", "int8", "compile"])
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    going = {side: reading(load(arguments.model, side), arguments.prefix) for side in arguments.sides}
    answers: dict[str, list[torch.Tensor]] = {side: [logits.float()] for side, (_, logits) in going.items()}
    seconds: dict[str, list[float]] = {side: [] for side in going}
    for _ in range(arguments.tokens):
        # Everybody follows the first side's answer, so that distributions can be compared.
        token = int(answers[arguments.sides[0]][-1].argmax())
        for side, (state, _) in going.items():
            started = time.perf_counter()
            logits = state.decode([token])[0]
            seconds[side].append(time.perf_counter() - started)
            answers[side].append(logits.float())
    expected = torch.stack(answers[arguments.sides[0]]).log_softmax(-1)
    rows: list[dict[str, Any]] = []
    for side in going:
        found = torch.stack(answers[side]).log_softmax(-1)
        milliseconds = 1e3 * statistics.median(seconds[side][2:])
        rows.append(
            {
                "side": side,
                "ms_per_token": milliseconds,
                "kl_divergence": float((expected.exp() * (expected - found)).sum(-1).mean()),
                "same_token": float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
            }
        )
    for row in rows:
        row["speedup"] = rows[0]["ms_per_token"] / row["ms_per_token"]
    report.table(rows)
    starts = {
        name: statistics.median(seconds_to_start(code) for _ in range(3))
        for name, code in (
            ("python", "pass"),
            ("import mplus", "import mplus"),
            ("import torch", "import torch"),
            ("MPlusChat()", "from mplus_integrations import MPlusChat; MPlusChat()"),
            ("from_pretrained", f"import mplus; mplus.MPlus.from_pretrained({arguments.model!r}, device='cpu')"),
        )
    }
    report.table([{"start": name, "seconds": seconds} for name, seconds in starts.items()])

    def draw(axes: Any) -> None:
        axes.bar([row["side"] for row in rows], [row["ms_per_token"] for row in rows])
        axes.set(ylabel="milliseconds per token", title=f"decoding over {arguments.prefix} memory tokens")

    report.save("cpu_decode", {"rows": rows, "starts": starts}, arguments.output, draw)


if __name__ == "__main__":
    main()
