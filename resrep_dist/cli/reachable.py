"""Prints what targets would leave of a model, before any training."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resrep_dist.config import PruneConfig
from resrep_dist.errors import UserError
from resrep_dist.graph import Graph
from resrep_dist.graph.costs import Cost
from resrep_dist.pruning.goals import Goal, goal_of, latency_of, ranking_scales
from resrep_dist.pruning.rules import select_masks
from resrep_dist.pruning.targets import narrowest_widths

import numpy as np
from rich.console import Console
from rich.table import Table

# Targets of the table beside the configured one, fractions of the base.
_FRACTIONS = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_MAX_LAYERS = 8


class _Measure(NamedTuple):
    """A cost that is known, and how it is called."""

    text: str
    heading: str
    cost: Cost
    base: float


def print_reachable(console: Console, graph: Graph, prune: PruneConfig, costs: str | None = None) -> None:
    """Print all costs that are known, what targets would leave of each, and which layers hold what is left.

    Args:
        console: Where it is printed.
        graph: Trace of the model.
        prune: The target.
        costs: Table of times, to show the time as well if the target does not count it.

    Raises:
        ConfigError: If a table cannot be read, or is of another model.
        UserError: If there are two tables.
    """
    goal, narrowest = goal_of(graph, prune), narrowest_widths(graph, prune)
    measures = _measures(graph, prune, goal, costs)
    for measure in measures:
        floor, show = measure.cost.total(narrowest), measure.cost.show
        is_goal = measure.cost is goal.cost
        target = f"target {show(goal.limit)} ({100 * goal.fraction:.1f} %); " if is_goal else ""
        console.print(
            f"{measure.text}: {show(measure.base)}; {target}lowest possible {show(floor)} "
            f"({100 * floor / measure.base:.1f} %)",
            markup=False,
        )
    console.print(_targets_table(graph, prune, goal, measures, narrowest))
    console.print(_assumption(prune), markup=False)
    _print_layers(console, goal, _likely_widths(graph, prune, goal, goal.fraction), graph.widths, narrowest)


def _measures(graph: Graph, prune: PruneConfig, goal: Goal, costs: str | None) -> list[_Measure]:
    macs_text = "Multiply-adds (convolutions and dense layers, one image)"
    measures = [_Measure(macs_text, "multiply-adds", graph.macs, graph.macs.total(graph.widths))]
    if graph.parameters is not None:
        total = graph.parameters.total(graph.widths)
        measures.append(_Measure("Parameters (of the merged model)", "parameters", graph.parameters, total))
    if goal.kind == "latency":
        if costs is not None:
            raise UserError(
                f"--costs {costs}: received beside a target of latency, whose table is {prune.goal.costs}; leave the "
                "option out, or change prune.target.costs"
            )
        return [*measures, _Measure(f"Latency ({prune.goal.costs})", "latency", goal.cost, goal.base)]
    path = costs or prune.goal.costs
    if path is not None:
        latency = latency_of(graph, path)
        measures.append(_Measure(f"Latency ({path})", "latency", latency, latency.base_ms))
    return measures


def _likely_widths(graph: Graph, prune: PruneConfig, goal: Goal, fraction: float) -> list[int]:
    """Return the widths that the selection would leave at a target if all groups had channels of the same norms."""
    equal_shares = [(np.arange(width) + 0.5) / width for width in graph.widths]
    return select_masks(
        equal_shares,
        goal.cost,
        target_cost=fraction * goal.base,
        max_chosen=sum(graph.widths),
        min_channels=prune.min_channels,
        round_to=graph.multiples(prune.round_to),
        scales=ranking_scales(goal, graph, prune),
    ).widths


def _targets_table(
    graph: Graph, prune: PruneConfig, goal: Goal, measures: Sequence[_Measure], narrowest: Sequence[int]
) -> Table:
    lowest = goal.fraction_at(narrowest)
    wanted = {fraction: f"{100 * fraction:.0f} %" for fraction in _FRACTIONS if fraction > lowest}
    if goal.fraction > lowest:
        wanted[goal.fraction] = f"{100 * goal.fraction:.1f} % (the target)"
    rows = [(wanted[f], _likely_widths(graph, prune, goal, f)) for f in sorted(wanted, reverse=True)]
    table = Table(title=f"What a target of {goal.cost.noun} would leave, in percent of the base model")
    for heading in ("target", *(measure.heading for measure in measures), "prunable channels kept"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    all_channels = sum(group.num_channels for group in graph.groups)
    for text, widths in (*rows, (f"{100 * lowest:.1f} % (lowest)", list(narrowest))):
        left = [f"{100 * measure.cost.total(widths) / measure.base:.1f}" for measure in measures]
        channels = sum(w * group.num_parts for w, group in zip(widths, graph.groups, strict=True))
        table.add_row(text, *left, f"{100 * channels / all_channels:.1f}")
    return table


def _assumption(prune: PruneConfig) -> str:
    taken = "takes equal shares of all groups"
    if prune.ranking == "norm_per_cost":
        taken = "gives all groups the same norms and takes what prune.ranking norm_per_cost would"
    return (
        f"Before training nothing tells which channels matter, so this {taken}. Training chooses by its norms, so the "
        "same target will leave somewhat more or less of what it does not count."
    )


def _print_layers(
    console: Console, goal: Goal, widths: Sequence[int], full: Sequence[int], narrowest: Sequence[int]
) -> None:
    """Print what the costliest layers hold at full width, at the target, and at the least."""
    before, left, least = ({**goal.cost.by_layer(w), "": _other(goal.cost, w)} for w in (full, widths, narrowest))
    names = sorted((name for name in left if name and before[name]), key=lambda name: (-left[name], name))
    shown, others = names[:_MAX_LAYERS], names[_MAX_LAYERS:]
    table = Table(title=f"Layers that hold the rest, in percent of the base model's {goal.cost.noun}")
    for heading in ("layer", "at full width", "at the target", "lowest possible"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")

    def add(text: str, of: Sequence[str]) -> None:
        sums = [sum(costs[name] for name in of) for costs in (before, left, least)]
        table.add_row(text, *(f"{100 * value / goal.base:.1f}" for value in sums))

    for name in shown:
        add(name, [name])
    if others:
        add(f"{len(others)} other layers", others)
    if before[""]:
        add("all that belongs to no layer here", [""])
    add("sum", list(left))
    console.print(table)
    if unchanged := [name for name in names if least[name] == before[name]]:
        share = sum(before[name] for name in unchanged) / goal.base
        console.print(
            f"Pruning does not change {len(unchanged)} of these {len(names)} layers, such as {unchanged[0]}; they hold "
            f"{100 * share:.1f} %.",
            markup=False,
        )


def _other(cost: Cost, widths: Sequence[int]) -> float:
    """Return what belongs to no layer: in a table of times all that pruning does not change."""
    of_layers: Mapping[str, float] = cost.by_layer(widths)
    return cost.total(widths) - sum(of_layers.values())
