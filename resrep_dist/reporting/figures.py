"""The figures of a report, as SVG text: small enough that their text can be read on a telephone."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

from resrep_dist.config.tasks import score_of
from resrep_dist.monitoring.channel_images import DIED_FIRST, DIED_LAST, LIVING, MASKED, channel_colors
from resrep_dist.reporting.run_folder import RunRecord

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "resrep", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
    "axes.spines.top": False, "axes.spines.right": False, "font.family": "sans-serif",
}  # fmt: skip
RUN_COLORS = (
    "#1f5fa8", "#d1495b", "#2a9d8f", "#e39c1f", "#7b4fa3", "#6b7785", "#8c5a2b", "#d96bb0", "#5aa02c", "#17a2c4",
)  # fmt: skip
"""Colors of the runs, the same in all figures and tables."""
# Name of each chart, what its axis shows, and the curves in it with their names and styles.
_CHARTS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "top1": (
        "top-1, percent",
        {"validation/top1": ("validation", "-"), "train/top1": ("training, as it goes", ":")},
    ),
    "labels": (
        "scores of labels, percent",
        {
            "validation/mean_average_precision": ("mAP, validation", "-"),
            "validation/f1": ("F1, validation", "--"),
            "train/label_accuracy": ("label accuracy, training", ":"),
        },
    ),
    "pixels": (
        "scores of pixels, percent",
        {
            "validation/mean_iou": ("mean IoU, validation", "-"),
            "validation/pixel_accuracy": ("pixel accuracy, validation", "--"),
            "train/pixel_accuracy": ("pixel accuracy, training", ":"),
        },
    ),
    "macs": (
        "multiply-adds left, percent",
        {
            "prune/macs_fraction_living": ("of living channels", "-"),
            "prune/macs_fraction_by_mask": ("by mask", ":"),
        },
    ),
    "loss": ("training loss", {"train/loss": ("loss", "-"), "train/lasso_term": ("lasso term", ":")}),
    "speed": ("images per second, all ranks", {"train/images_per_second": ("training", "-")}),
}
_SIZE_INCHES = (4.8, 3.0)
_MAX_MARKERS = 40
_LOG_RATIO = 30
_MAX_NAME_LENGTH = 26


def run_color(number: int) -> str:
    """Return the color of a run.

    Args:
        number: Its place among the runs of a page.
    """
    return RUN_COLORS[number % len(RUN_COLORS)]


def curves_pictures(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Draw top-1 or the scores of another task, multiply-adds, loss and speed over the steps. Limits fit the points.

    Of one run each curve has a color. Of several each run has one, and the style tells the curves apart.

    Args:
        runs: The runs.

    Returns:
        An `<svg>` element for each chart that has points.
    """
    return {
        name: _chart(runs, title, tags)
        for name, (title, tags) in _CHARTS.items()
        if any(run.curves.get(tag) for run in runs for tag in tags)
    }


def _chart(runs: Sequence[RunRecord], title: str, tags: dict[str, tuple[str, str]]) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("step")
        handles, all_values = [], []
        for number, run in enumerate(runs):
            for curve, (tag, (label, style)) in enumerate(tags.items()):
                steps, values = np.array(run.curves.get(tag, [])).reshape(-1, 2).T
                values = 100 * values if tag.startswith("prune/macs_fraction") else values
                values = np.where(np.isfinite(values), values, np.nan)
                color, style = (run_color(curve), "-") if len(runs) == 1 else (run_color(number), style)
                marker = "." if len(values) <= _MAX_MARKERS else ""
                (line,) = axes.plot(steps, values, style, color=color, label=label, linewidth=1.4, marker=marker)
                if len(runs) == 1 and len(values):
                    handles.append(line)
                all_values.append(values)
        flat = np.concatenate(all_values)
        if "loss" in title and np.nanmin(flat) > 0 and np.nanmax(flat) > _LOG_RATIO * np.nanmin(flat):
            axes.set_yscale("log")
        if len(runs) > 1:
            handles = [Line2D([], [], color=run_color(number), label=run.name) for number, run in enumerate(runs)]
            handles += [Line2D([], [], color="#444", ls=style, label=label) for label, style in tags.values()]
        legend(figure, handles)
        return to_svg(figure)


def legend(figure: Any, handles: Sequence[Any]) -> None:
    """Put the legend below the axes, where it hides no point.

    Args:
        figure: A Matplotlib figure.
        handles: Lines or patches with labels.
    """
    longest = max((len(handle.get_label()) for handle in handles), default=1)
    num_columns = max(1, min(len(handles), 66 // (longest + 8)))
    figure.legend(handles=handles, loc="outside lower left", ncols=num_columns, frameon=False, fontsize=8)


def channels_picture(run: RunRecord) -> str:
    """Draw the width of every group before and after pruning, and for each channel whether it lives or when it died.

    Args:
        run: A run with pruning, which has a history of its channels or is finished.

    Returns:
        An `<svg>` element.
    """
    history = run.channels
    final: dict[str, dict[str, int]] = (run.report or {}).get("certificate", {}).get("channels", {})
    deaths = history.first_and_last_death()
    rows = {}
    for name in history.died_at or final:
        if name in history.died_at:
            rows[name] = channel_colors(history.masked_at[name], history.died_at[name], deaths)
        else:
            kept, original = final[name]["kept"], final[name]["original"]
            rows[name] = np.array([LIVING] * kept + [DIED_LAST] * (original - kept))
    widest = max(map(len, rows.values()))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(5.2, 1.1 + 0.2 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for row, (name, colors) in enumerate(rows.items()):
            _draw_row(axes, row, colors)
            after = final[name]["kept"] if name in final else int((colors == LIVING).all(-1).sum())
            axes.text(len(colors), row, f" {len(colors)} → {after}", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), map(shortened, rows), fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.2 * widest)
        axes.set_xlabel("channels")
        states = {"living": LIVING, "masked": MASKED}
        if deaths != (0, 0):
            states |= {f"died at step {deaths[0]:,}": DIED_FIRST, f"at step {deaths[1]:,}": DIED_LAST}
        elif not history.died_at:
            states = {"kept": LIVING, "deleted": DIED_LAST}
        legend(figure, [Patch(color=_hex(color), label=label) for label, color in states.items()])
        return to_svg(figure)


def _draw_row(axes: Any, row: int, colors: np.ndarray) -> None:
    """Draw neighbors of one color as one bar: an image would be blurred by the browser."""
    start = 0
    for color, cells in itertools.groupby(map(tuple, colors)):
        width = len(list(cells))
        axes.barh(row, width, 0.78, left=start, color=_hex(color))
        start += width


def shortened(name: str) -> str:
    """Return a name that leaves room for the figure: of a long one the ends.

    Args:
        name: Name of a layer.
    """
    half = _MAX_NAME_LENGTH // 2
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[:half - 1]}…{name[-half:]}"


def costs_pictures(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Draw top-1, or the score of another task, over multiply-adds and over latency, from the base to the slim model.

    Args:
        runs: Finished runs.

    Returns:
        Two `<svg>` elements.
    """
    axes = {"macs": ("multiply-adds, millions", 1e6), "latency_ms": ("latency of one image here, ms", 1.0)}
    return {
        key.removesuffix("_ms"): _cost_chart(runs, key, label, unit)
        for key, (label, unit) in axes.items()
        if any(model.get(key) is not None for run in runs for model in run.models.values())
    }


def _cost_chart(runs: Sequence[RunRecord], key: str, label: str, unit: float) -> str:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes, all_points = figure.subplots(), []
        for number, run in enumerate(runs):
            # The trained model still has its compactors; nobody uses it.
            models = {name: m for name, m in run.models.items() if name != "trained" and m.get(key) is not None}
            points = [(model[key] / unit, score_of(model).value) for model in models.values()]
            all_points += points
            color = run_color(number)
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1, alpha=0.5)
            for name, point in zip(models, points, strict=True):
                fill = "white" if name == "base" else color
                axes.plot(*point, "o", color=color, markerfacecolor=fill, markersize=7)
                if len(runs) == 1:
                    axes.annotate(name, point, (0, 8), textcoords="offset points", ha="center", fontsize=8)
        names = dict.fromkeys(score_of(model).name for run in runs for model in run.models.values())
        axes.set_title(f"validation {', '.join(names)}, percent", fontsize=9, loc="left")
        axes.set_xlabel(label)
        # At least 2 percent and a fifth of the cost, so that small differences do not look large.
        costs, accuracies = zip(*all_points, strict=True)
        axes.set_xlim(limits(costs, max(costs) / 5))
        axes.set_ylim(limits(accuracies, 2.0))
        if len(runs) > 1:
            circle: dict[str, Any] = {"marker": "o", "linestyle": "none"}
            handles = [
                Line2D([], [], color=run_color(number), label=run.name, **circle) for number, run in enumerate(runs)
            ]
            handles += [Line2D([], [], color="#444", markerfacecolor="white", label="empty: base", **circle)]
            legend(figure, handles)
        return to_svg(figure)


def limits(values: Sequence[float], min_range: float) -> tuple[float, float]:
    """Return limits of an axis around all points, with room at the ends.

    Args:
        values: The points on this axis.
        min_range: Least difference of the limits, so that small differences do not look large.
    """
    low, high = min(values), max(values)
    missing = max(0.0, min_range - (high - low)) / 2
    room = 0.18 * max(min_range, high - low)
    return low - missing - room, high + missing + room


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
