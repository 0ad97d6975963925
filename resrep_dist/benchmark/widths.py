"""The widths of the smaller models in benchmarks: those of a run, of a log, or the same fraction of all groups."""

import json
from collections.abc import Mapping
from pathlib import Path

from resrep_dist.config import Config
from resrep_dist.errors import UserError
from resrep_dist.graph import Graph
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.pruning.goals import Goal, goal_of
from resrep_dist.reporting.table import read_report
from resrep_dist.training.phase import pruning_of

import numpy as np


def choose_channels(graph: Graph, config: Config, run: Path | None = None) -> KeptChannels:
    """Choose the channels of the smaller models.

    Args:
        graph: Graph of the model.
        config: The configuration.
        run: Folder of a finished run, or a log of widths (see `read_log`), of which the last widths are used. None if
            every group keeps the same fraction of its channels, the largest that meets the target.

    Raises:
        UserError: If the run or log cannot be read or is of another model.
    """
    if run is None:
        prune = pruning_of(config)
        return even_channels(graph, goal_of(graph, prune), prune.round_to)
    if run.is_file():
        _, widths = read_log(run, graph)[-1]
        return KeptChannels.first_of(widths)
    channels = read_report(run).get("certificate", {}).get("channels", {})
    return channels_of(graph, {name: counts["kept"] for name, counts in channels.items()})


def read_log(path: Path, graph: Graph) -> list[tuple[int, list[int]]]:
    """Read a log of the number of channels that are alive.

    Widths never increase in the result, since a model that becomes smaller cannot get channels back.

    Args:
        path: JSON with `living_channels`, a list of `{"iteration": ..., "living_widths": [...]}`. The last one is the
            end of the run.
        graph: Graph of the model.

    Returns:
        Pairs of a step and the widths of all groups from that step on; the last step is the end of the run.

    Raises:
        UserError: If the file cannot be read, has another form, or is of another model.
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


def channels_of(graph: Graph, kept: Mapping[str, int]) -> KeptChannels:
    """Return the channels with the numbers of channels that a report has.

    Args:
        graph: Graph of the model.
        kept: Number of channels of each group, by name.

    Raises:
        UserError: If the groups are not those of the graph, or a group cannot have that number of channels.
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


def even_channels(graph: Graph, goal: Goal, round_to: int = 1) -> KeptChannels:
    """Return the channels in which every group keeps the largest possible fraction of its channels, the same for all.

    Args:
        graph: Graph of the model.
        goal: What may be left.
        round_to: Layers have multiples of this number of channels, at least one, unless the full width is less.
    """
    multiples = graph.multiples(round_to)

    def widths(share: float) -> list[int]:
        both = zip(graph.widths, multiples, strict=True)
        return [min(width, multiple * max(1, round(share * width / multiple))) for width, multiple in both]

    shares = [number / 1000 for number in range(1001)]
    fitting = [share for share in shares if goal.cost.total(widths(share)) <= goal.limit] or [0.0]
    return KeptChannels.first_of(widths(fitting[-1]))
