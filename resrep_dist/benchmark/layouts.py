"""The widths at which smaller models are measured: those of a run, of a recorded one, or an even share."""

import json
from collections.abc import Mapping
from pathlib import Path

from resrep_dist.config import Config
from resrep_dist.errors import UserError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.reporting.table import read_report
from resrep_dist.training.phase import pruning_of

import numpy as np


def choose_layout(graph: Graph, config: Config, run: Path | None = None) -> KeptChannels:
    """The layout of smaller models.

    Args:
        run: the folder of a finished run, or a recorded one, see `read_log`, of which the last widths count. By default
            every group keeps the same share, the largest that meets `prune.target_macs_fraction`.

    Raises:
        UserError: for a run of another model.
    """
    if run is None:
        prune = pruning_of(config)
        return even_layout(graph, prune.target_macs_fraction, prune.round_to)
    if run.is_file():
        _, widths = read_log(run, graph)[-1]
        return KeptChannels.first_of(widths)
    channels = read_report(run).get("certificate", {}).get("channels", {})
    return layout_of(graph, {name: counts["kept"] for name, counts in channels.items()})


def read_log(path: Path, graph: Graph) -> list[tuple[int, list[int]]]:
    """The living channels of each group from a step on, [(step, widths), ...], and at last the step of the end.

    A channel that comes to life again does not count: a model that shrinks would have lost it.

    Args:
        path: JSON, `living_channels` of `{"iteration": ..., "living_widths": [...]}`; the last one is the end.

    Raises:
        UserError: for a file of another form, or of another model.
    """
    try:
        records = [
            (int(record["iteration"]), [int(width) for width in record["living_widths"]])
            for record in json.loads(path.read_text(encoding="utf-8"))["living_channels"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: no log of widths ({type(error).__name__}: {error}); expected JSON with `living_channels`, a list "
            "of `iteration` and `living_widths`"
        ) from None
    steps = [step for step, _ in records]
    if len(records) < 2 or steps != sorted(set(steps)) or steps[0] < 0:
        raise UserError(f"{path}: expected at least 2 records in the order of their iterations, received {len(steps)}")
    for step, widths in records:
        if len(widths) != len(graph.widths) or not all(
            0 < width <= full for width, full in zip(widths, graph.widths, strict=True)
        ):
            raise UserError(
                f"{path}: at iteration {step} {len(widths)} widths that are not those of this model's "
                f"{len(graph.widths)} groups; give the model's own config, with the same layers under `prune.exclude`"
            )
    lowest = np.minimum.accumulate([widths for _, widths in records]).tolist()
    return list(zip(steps, lowest, strict=True))


def layout_of(graph: Graph, kept: Mapping[str, int]) -> KeptChannels:
    """So many channels of each group, as the report of a run has them.

    Raises:
        UserError: for other groups than the graph's, or numbers that they cannot have.
    """
    names = {group.name for group in graph.groups}
    if other := sorted(names ^ kept.keys()):
        raise UserError(
            f"--run: it is of another model, `{other[0]}` is a group of one of them only; give its own config"
        )
    for group in graph.groups:
        if not 0 < kept[group.name] <= group.num_channels or kept[group.name] % group.num_parts:
            raise UserError(
                f"--run: {group.name} keeps {kept[group.name]}, expected 1 to {group.num_channels} channels"
            )
    return KeptChannels.first_of(kept[group.name] // group.num_parts for group in graph.groups)


def even_layout(graph: Graph, macs_fraction: float, round_to: int = 1) -> KeptChannels:
    """Of every group the same share of the channels, as many as the multiply-adds allow; at least one."""

    def widths(share: float) -> list[int]:
        rounded = [round_to * max(1, round(share * width / round_to)) for width in graph.widths]
        return [min(pair) for pair in zip(rounded, graph.widths, strict=True)]

    shares = [number / 1000 for number in range(1001)]
    total = graph.macs.total(graph.widths)
    fitting = [share for share in shares if graph.macs.total(widths(share)) <= macs_fraction * total] or [0.0]
    return KeptChannels.first_of(widths(fitting[-1]))
