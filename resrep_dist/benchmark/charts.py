"""Charts of the benchmarks, as SVG: measured times beside multiply-adds."""

from collections.abc import Callable, Mapping
from typing import Any

from resrep_dist.reporting.figures import STYLE, to_svg

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Key of a ratio of the steps, label, color.
_BARS = (
    ("time", "time of a step", "#2563a8"),
    ("macs", "multiply-adds", "#c9d3de"),
    ("reduced_bytes", "bytes reduced", "#8fb58a"),
)


def steps_picture(result: Mapping[str, Any]) -> str:
    """Draw the time, multiply-adds and reduced bytes of a step of each arm, relative to plain training.

    Args:
        result: The result of `benchmark_steps`.

    Returns:
        The chart as SVG.
    """
    ratios = result["ratios"]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(10, 0.9 + 0.6 * len(ratios)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(ratios))
        for number, (key, label, color) in enumerate(_BARS):
            values = [ratio[key] for ratio in ratios.values()]
            axes.barh(places + 0.27 * (number - 1), values, 0.25, color=color, label=label)
        for place, (name, ratio) in enumerate(ratios.items()):
            label = f" {ratio['time']:.3f}, {result['arms'][name]['step_ms_median']:.0f} ms"
            axes.text(ratio["time"], place - 0.27, label, va="center", fontsize=8)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_yticks(places, list(ratios))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(f"relative to plain training; {_setting(result)}")
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
        return to_svg(figure)


def replay_picture(result: Mapping[str, Any]) -> str:
    """Draw the time and multiply-adds of a step during a recorded run for each `shrink.mode`.

    Args:
        result: The result of `benchmark_replay`.

    Returns:
        The chart as SVG.
    """
    modes = result["stages"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes_pair = figure.subplots(1, 2, sharey=True)
        titles = {"time_vs_plain": "time of a step", "macs_vs_plain": "multiply-adds"}
        for axes, (key, title) in zip(axes_pair, titles.items(), strict=True):
            for number, (mode, stages) in enumerate(modes.items()):
                edges = np.cumsum([0, *(stage["num_steps"] for stage in stages)])
                label = f"{mode}, whole run {result[key][mode]:.3f}"
                axes.stairs([stage[key] for stage in stages], edges, baseline=None, label=label, color=f"C{number}")
            axes.axhline(1.0, color="black", linewidth=0.8)
            axes.set_title(f"{title}, relative to plain training", fontsize=9)
            axes.set_xlabel("step of the recorded run")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8, frameon=False, loc="lower left")
        figure.suptitle(_setting(result), fontsize=9)
        return to_svg(figure)


PICTURES: dict[str, Callable[[Mapping[str, Any]], str]] = {"steps": steps_picture, "replay": replay_picture}
"""The function that draws each section of `benchmark.json`."""


def _setting(result: Mapping[str, Any]) -> str:
    return (
        f"{result['model']}, {result['image_size_pixels']} px, batch {result['global_batch_size_images']}, "
        f"{result['num_ranks']} rank(s)"
    )
