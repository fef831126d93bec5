"""What every benchmark says about itself: the machine, a table, a JSON file and a plot."""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smol-135m")
    made.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file and the plot")
    return made


def machine() -> dict[str, Any]:
    """Hardware, versions, commit and how busy the machine was."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line), cpu)
    command = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    except OSError:
        commit = ""  # no git here
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit.strip(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows under the names of their fields."""
    names = list(rows[0])
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(name: str, found: Mapping[str, Any], output: Path) -> None:
    """Write ``name.json``."""
    output.mkdir(parents=True, exist_ok=True)
    output.joinpath(f"{name}.json").write_text(json.dumps({"machine": machine(), **found}, indent=2) + "\n")


def save(name: str, found: Mapping[str, Any], output: Path, draw: Callable[[Any], None]) -> None:
    """Write ``name.json`` and, where matplotlib is installed, ``name.png``.

    ``draw`` gets matplotlib's axes.
    """
    write(name, found, output)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No plot: pip install 'mplus-memory[bench]'.")
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw(figure.subplots())
    figure.savefig(output / f"{name}.png", dpi=120)
    print(f"{output / name}.json, .png")


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """A KV cache as keyword argument of a transformers model; 5.24 renamed it."""
    name = "cache" if "cache" in signature(type(model).forward).parameters else "past_key_values"
    return {name: cache}
