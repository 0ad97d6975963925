"""What is said of a measured table."""

import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any

from .rounds import Median

_MAX_ERROR = 0.1
# The time of a layer that is measured behind another one has the errors of both.
_BOUNDS = 2


def worst_error(table: Mapping[str, Any]) -> float:
    """Return the largest difference of a prediction for a whole model from its time, as a fraction of the time.

    Args:
        table: A measured table, as values for JSON.
    """
    errors = (abs(check["predicted_ms"] / check["measured_ms"] - 1) for check in table["checks"])
    return max(errors, default=math.nan)


def distrust(table: Mapping[str, Any]) -> str | None:
    """Return why no target should be aimed at by a table; None if it may be.

    Args:
        table: A measured table, as values for JSON.
    """
    error = worst_error(table)
    if math.isnan(error) or error <= _MAX_ERROR:
        return None
    return (
        f"the times of whole models are not the sum of their layers' there, but up to {100 * error:.0f} % off; measure "
        "again when the machine is free."
    )


def wide_spreads(table: Mapping[str, Any]) -> list[str]:
    """Return the names of layers of which an error is above twice the bound.

    The error is relative to the layer's own time or to the mean of all times, whichever is longer.

    Args:
        table: A measured table, as values for JSON.
    """

    def times(layer: Mapping[str, Any]) -> list[Median]:
        pairs = zip(itertools.chain(*layer["milliseconds"]), itertools.chain(*layer["spreads"]), strict=True)
        return [Median(*pair) for pair in pairs]

    of_layers = {layer["names"][0]: times(layer) for layer in table["layers"]}
    mean = statistics.fmean(time.milliseconds for of_layer in of_layers.values() for time in of_layer)
    bound = _BOUNDS * table["spread_bound"]
    return [name for name, of_layer in of_layers.items() if not all(time.is_known(bound, mean) for time in of_layer)]


def summary(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a table says, and whether it is good enough, as headings, which may be empty, with sentences.

    Args:
        table: A measured table, as values for JSON.
    """
    layers = table["layers"]
    num_times = sum(len(row) for layer in layers for row in layer["milliseconds"])
    num_layers = sum(len(layer["names"]) for layer in layers)
    error = worst_error(table)
    lines = [
        (
            "",
            f"{table['model']}, {table['runtime']}, batch {table['batch_size']}, {table['num_threads']} thread(s): "
            f"{num_times} times of {len(layers)} kinds of {num_layers} layers; the base model takes "
            f"{table['base_ms']:.4g} ms.",
        ),
        (
            "",
            f"{len(table['checks'])} whole models of random widths take what the table says within "
            f"{100 * error:.1f} %, by which it was scaled.",
        ),
    ]
    if wide := wide_spreads(table):
        text = f"the medians of {len(wide)} of {len(layers)} layers, such as {wide[0]}, vary by more than "
        text += f"{100 * _BOUNDS * table['spread_bound']:.0f} % of the mean; measure again when the machine is free."
        lines.append(("Not known well:", text))
    if reason := distrust(table):
        lines.append(("Do not aim by this table:", reason))
    return lines
