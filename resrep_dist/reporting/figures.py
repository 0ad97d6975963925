"""The figures of a report, as SVG text."""

import io
from collections.abc import Sequence
from typing import Any

from resrep_dist.monitoring.channel_images import DIED_FIRST, DIED_LAST, LIVING, MASKED, channel_colors
from resrep_dist.reporting.run_folder import RunRecord

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "resrep", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif",
}  # fmt: skip
# Title of each chart, and the tags in it with the style of their lines.
_CHARTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss (full) and lasso term (dashed)", {"train/loss": "-", "train/lasso_term": "--"}),
    ("top-1, percent: validation (full), training (dotted)", {"validation/top1": "-", "train/top1": ":"}),
    (
        "multiply-adds left: living channels (full), by mask (dashed)",
        {"prune/macs_fraction_living": "-", "prune/macs_fraction_by_mask": "--"},
    ),
    ("images per second, all ranks", {"train/images_per_second": "-"}),
)
_MARKERS = {"base": "o", "trained": "s", "slim": "D", "final": "o"}


def curves_picture(runs: Sequence[RunRecord]) -> str:
    """Draw loss, top-1, multiply-adds and speed over the steps, one color per run.

    Args:
        runs: The runs.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6), layout="constrained")
        for axes, (title, tags) in zip(figure.subplots(2, 2).flat, _CHARTS, strict=True):
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("step")
            for number, run in enumerate(runs):
                for tag, style in tags.items():
                    steps, values = np.array(run.curves.get(tag, [])).reshape(-1, 2).T
                    label = run.name if tag == next(iter(tags)) else None
                    axes.plot(steps, values, style, color=f"C{number % 10}", label=label, linewidth=1.3)
            if len(runs) > 1:
                axes.legend(fontsize=8, frameon=False)
        return to_svg(figure)


def widths_picture(run: RunRecord) -> str:
    """Draw the number of channels of every group, before and after pruning.

    Args:
        run: A finished run with pruning.

    Returns:
        An `<svg>` element.
    """
    channels: dict[str, dict[str, int]] = (run.report or {})["certificate"]["channels"]
    names = list(channels)
    original, kept = ([entry[key] for entry in channels.values()] for key in ("original", "kept"))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10, 0.8 + 0.22 * len(names)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(names))
        axes.barh(places, original, color="#e3e6ea", height=0.75, label="base")
        axes.barh(places, kept, color=_hex(LIVING), height=0.75, label="slim")
        for place, (before, after) in enumerate(zip(original, kept, strict=True)):
            axes.text(before, place, f" {before} → {after}", va="center", fontsize=8)
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max(original))
        axes.set_xlabel("channels")
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
        return to_svg(figure)


def channels_picture(run: RunRecord) -> str:
    """Draw for every channel of every group whether it lives, is masked, or when it died.

    Args:
        run: A run with pruning, whose history has at least one group.

    Returns:
        An `<svg>` element.
    """
    history = run.channels
    names, widest = list(history.died_at), max(map(len, history.died_at.values()))
    deaths = history.first_and_last_death()
    pixels = np.full([len(names), widest, 3], 255, np.uint8)
    for row, name in enumerate(names):
        colors = channel_colors(history.masked_at[name], history.died_at[name], deaths)
        pixels[row, : len(colors)] = colors
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10, 1.0 + 0.2 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(pixels, aspect="auto", interpolation="none")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        # The rows are separated by white lines.
        axes.hlines(np.arange(len(names) - 1) + 0.5, -0.5, widest - 0.5, colors="white", linewidth=2)
        axes.set_xlabel("channels, ordered by state")
        states = {"living": LIVING, "masked": MASKED}
        if deaths != (0, 0):
            states |= {f"died at step {deaths[0]}": DIED_FIRST, f"at step {deaths[1]}": DIED_LAST}
        patches = [Patch(color=_hex(color), label=label) for label, color in states.items()]
        axes.legend(handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False)
        return to_svg(figure)


def costs_picture(runs: Sequence[RunRecord]) -> str:
    """Draw top-1 over multiply-adds and over latency, for the base, trained and slim models.

    Args:
        runs: Finished runs.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes_pair = figure.subplots(1, 2, sharey=True)
        for axes, key, label, unit in zip(
            axes_pair, ("macs", "latency_ms"), ("multiply-adds, millions", "latency of one image, ms"), (1e6, 1.0),
            strict=True,
        ):  # fmt: skip
            for number, run in enumerate(runs):
                models = {name: model for name, model in run.models.items() if model[key] is not None}
                for name, model in models.items():
                    axes.plot(
                        model[key] / unit, model["top1"], _MARKERS[name], color=f"C{number % 10}", markersize=7,
                        label=f"{run.name}: {name}" if len(runs) > 1 else name,
                        fillstyle="none" if name == "base" else "full",
                    )  # fmt: skip
            axes.set_xlabel(label)
            axes.margins(0.12)
            axes.set_xlim(left=0)
        low, high = axes_pair[0].get_ylim()
        # The axis covers at least 2 percent, so that differences of a few images do not look large.
        axes_pair[0].set_ylim(min(low, (low + high) / 2 - 1), min(max(high, (low + high) / 2 + 1), 100.5))
        axes_pair[0].set_ylabel("top-1, percent")
        axes_pair[1].legend(fontsize=8, frameon=True, loc="best")
        return to_svg(figure)


def to_svg(figure: Any) -> str:
    """Return a figure as an `<svg>` element; the same figure always gives the same text.

    Args:
        figure: A Matplotlib figure.
    """
    text = io.StringIO()
    # Date and version of Matplotlib would make the files of the same run differ.
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # The XML header before the element must not be part of a page.
    return text.getvalue()[text.getvalue().index("<svg") :]


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
