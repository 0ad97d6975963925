"""The figures of measured latencies: score over latency, and the layers of the slim model."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.reporting.figures import RUN_COLORS, STYLE, legend, limits, shortened, to_svg
from resrep_dist.reporting.latency_points import RUNTIMES, VARIANTS, FilePoint, LayerPoint

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_MARKERS = dict(zip(VARIANTS, "ooD", strict=True))
_LOG_RATIO = 8
_PREDICTED = RUN_COLORS[1]


def latency_picture(points: Sequence[FilePoint], score_name: str, batch_size: int) -> str:
    """Draw the score over the latency of a batch: of each runtime from the base over the slim model to eight bits.

    Args:
        points: The files of this batch size whose score is known.
        score_name: Name of the score.
        batch_size: Number of images in a batch.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        axes, colors = figure.subplots(), dict(zip(RUNTIMES, RUN_COLORS, strict=False))
        for runtime, color in colors.items():
            own = [point for point in points if point.runtime == runtime]
            places = [(point.milliseconds, float(point.score or 0.0)) for point in own]
            axes.plot(*np.reshape(places, (-1, 2)).T, color=color, linewidth=1, alpha=0.5, zorder=1)
            for point, place in zip(own, places, strict=True):
                axes.errorbar(
                    *place, xerr=point.milliseconds * (point.spread or 0.0), color=color, linestyle="none",
                    marker=_MARKERS[point.variant], markersize=7,
                    markerfacecolor="white" if point.variant == "base" else color,
                )  # fmt: skip
        times = [point.milliseconds for point in points]
        axes.set_title(f"validation {score_name}, percent", fontsize=9, loc="left")
        images = "one image" if batch_size == 1 else f"a batch of {batch_size}"
        axes.set_xlabel(f"latency of {images} here, ms")
        axes.set_ylim(limits([float(point.score or 0.0) for point in points], 2.0))
        if max(times) > _LOG_RATIO * min(times):
            _make_logarithmic(axes)
        else:
            axes.set_xlim(limits(times, max(times) / 5))
        used = {point.runtime for point in points}
        handles = [Line2D([], [], color=c, label=RUNTIMES[name]) for name, c in colors.items() if name in used]
        for variant in dict.fromkeys(point.variant for point in points):
            fill = "white" if variant == "base" else "#444"
            handles.append(
                Line2D([], [], color="#444", marker=_MARKERS[variant], markerfacecolor=fill, ls="none", label=variant)
            )
        legend(figure, handles)
        return to_svg(figure)


def _make_logarithmic(axes: Any) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def layers_picture(points: Sequence[LayerPoint]) -> str:
    """Draw how long each layer of the slim model takes, and what a table predicts.

    Args:
        points: The layers, from the top down.

    Returns:
        An `<svg>` element.
    """
    longest = max(max(point.measured_ms or 0.0, point.predicted_ms or 0.0) for point in points)
    unit, factor = ("ms", 1.0) if longest >= 1 else ("microseconds", 1000.0)
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(5.2, 1.1 + 0.2 * len(points)), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        for row, point in enumerate(points):
            known = [value * factor for value in point[1:] if value is not None]
            if point.measured_ms is not None:
                axes.barh(row, point.measured_ms * factor, 0.7, color=RUN_COLORS[0], alpha=0.8)
            if point.predicted_ms is not None:
                axes.plot(point.predicted_ms * factor, row, "D", color=_PREDICTED, markersize=5)
            if known:
                text = f"{known[0]:.3g}" if point.measured_ms is not None else "not told"
                axes.annotate(text, (max(known), row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(points)), [shortened(point.name) for point in points], fontsize=8)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_xlim(0, 1.18 * longest * factor)
        axes.set_xlabel(unit)
        handles: list[Any] = [Patch(color=RUN_COLORS[0], alpha=0.8, label="measured")]
        if any(point.predicted_ms is not None for point in points):
            handles.append(Line2D([], [], color=_PREDICTED, marker="D", markersize=5, ls="none", label="by the table"))
        legend(figure, handles)
        return to_svg(figure)
