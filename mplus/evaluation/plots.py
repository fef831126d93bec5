"""The retention curves: how much is answered after how much other text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mplus.evaluation.report import Line

SCALE = 1000
"""Tokens up to which the axis is linear, so that 0 has a place on it."""


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
        raise ValueError("The plot needs matplotlib, which is not installed: pip install 'mplus[evaluate]'.")
    curves: dict[str, list[Line]] = {}
    for line in report:
        if line.contains is not None:
            curves.setdefault(line.mode, []).append(line)
    if not curves:
        raise ValueError("There is nothing to plot: no answerable question was asked.")
    # The object interface touches no global state, and needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for mode, points in curves.items():
        levels = [point.level for point in points]
        estimates = [point.contains for point in points if point.contains is not None]
        style = "--" if mode == "closed-book" else "-"
        (drawn,) = axes.plot(levels, [e.mean for e in estimates], style, marker="o", markersize=3.5, label=mode)
        axes.fill_between(
            levels, [e.low for e in estimates], [e.high for e in estimates], color=drawn.get_color(), alpha=0.12
        )
    ticks = sorted({line.level for line in report})
    axes.set_xscale("symlog", linthresh=SCALE)
    axes.set_xticks(ticks, [f"{level // 1000}k" if level >= 1000 else str(level) for level in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1)
    axes.set_xlabel("tokens of other text in between")
    axes.set_ylabel("answers that contain the right one")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path)
