"""What a run was asked to save, and what it has saved, from its report."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from resrep_dist.graph import Graph
from resrep_dist.pruning.goals import Goal


class Outcome(NamedTuple):
    """The target of a run, and what is left."""

    noun: str
    """What the target counts, as in "multiply-adds"."""
    asked: float
    """What may be left, as a fraction of the base model's."""
    left: float
    """What is left, as a fraction of the base model's."""


def outcome_of(report: Mapping[str, Any]) -> Outcome:
    """Return the target of a finished run that prunes, and what is left.

    Args:
        report: Report of the run. Those of 0.2.0 and before have no `target`: it counted multiply-adds.
    """
    target = report.get("target")
    if target is None or target["kind"] == "macs":
        return Outcome("multiply-adds", report["target_macs_fraction"], report["slim"]["macs"] / report["base"]["macs"])
    return Outcome(target["noun"], target["fraction"], target["left_fraction"])


def target_section(
    goal: Goal, graph: Graph, channels: Mapping[str, Mapping[str, int]], macs: Mapping[str, int]
) -> dict[str, Any]:
    """Return what a report says of its target: the keys `target`, `target_missed` and `target_macs_fraction`.

    Args:
        goal: The target.
        graph: Trace of the original model.
        channels: Number of channels of each group of the slim model, see `Certificate.channels`.
        macs: Multiply-adds of the models `base` and `slim`.
    """
    widths = [channels[group.name]["kept"] // group.num_parts for group in graph.groups]
    is_macs = goal.kind == "macs"
    left = macs["slim"] / macs["base"] if is_macs else goal.fraction_at(widths)
    is_missed = macs["slim"] > goal.fraction * macs["base"] if is_macs else not goal.is_met(widths)
    numbers = {"base": goal.base, "limit": goal.limit, "left": left * goal.base, "fraction": goal.fraction}
    names = {"kind": goal.kind, "noun": goal.cost.noun, "unit": goal.cost.unit}
    return {
        "target_macs_fraction": goal.fraction if is_macs else None,
        "target": {**names, **numbers, "left_fraction": left},
        "target_missed": is_missed,
    }
