"""The retention curves: how much is answered after how much other text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mplus.evaluation.report import Line

SCALE = 1000
"""Tokens up to which the logarithmic axis is linear, so that it can show 0."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def retention(report: Sequence[Line], path: Path, *, title: str) -> None:
    """Contains-answer over distractor tokens as a PNG, with 95% intervals; one curve per way of answering.

    Raises:
        ValueError: matplotlib is not installed, or nothing answerable was asked.
    """
    if not can_plot():
        raise ValueError("The plot needs matplotlib, which is not installed: pip install 'mplus-memory[evaluate]'.")
    curves: dict[str, list[Line]] = {}
    for line in report:
        if line.contains is not None:
            curves.setdefault(line.mode, []).append(line)
    if not curves:
        raise ValueError("There is nothing to plot: no answerable question was asked.")
    # The object interface touches no global state, and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    figure = Figure(figsize=(9.6, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for place, (mode, points) in enumerate(curves.items()):
        estimates = [point.contains for point in points if point.contains is not None]
        # Side by side, or intervals at one level would hide one another.
        aside = ScaledTranslation((place - (len(curves) - 1) / 2) * 0.018, 0, figure.dpi_scale_trans)
        axes.errorbar(
            [point.level for point in points],
            [e.mean for e in estimates],
            yerr=[[max(e.mean - e.low, 0) for e in estimates], [max(e.high - e.mean, 0) for e in estimates]],
            label=f"{mode} ({min(e.size for e in estimates)})",
            transform=axes.transData + aside,
            color=f"C{place % 10}",
            linestyle=_line(mode),
            linewidth=2.4 if mode == "mplus" else 1.3,
            elinewidth=0.8,
            marker="o" if place < 10 else "s",
            markersize=3.5,
        )
    ticks = sorted({line.level for line in report})
    axes.set_xscale("symlog", linthresh=SCALE)
    axes.set_xticks(ticks, [f"{level // 1000}k" if level >= 1000 else str(level) for level in ticks])
    axes.minorticks_off()
    axes.set_xlim(-0.08 * SCALE, 1.25 * ticks[-1] + 0.08 * SCALE)
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens of other text in between")
    axes.set_ylabel("answers that contain the right one")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, title="questions in brackets", title_fontsize=8)
    figure.savefig(path)


def _line(mode: str) -> str:
    """Latent memory is drawn through, passages of a retriever dashed, a prompt alone dotted."""
    if mode.startswith("rag"):
        return "--"
    return ":" if mode in ("closed-book", "full-context") else "-"
